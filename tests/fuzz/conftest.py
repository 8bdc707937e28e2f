"""How long the fuzz tests go on: a few seconds each by default, the same cases every time; as long
as you like by `make fuzz`, new ones every time."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("short", max_examples=80, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=5_000, **_COMMON)
settings.load_profile("short")
