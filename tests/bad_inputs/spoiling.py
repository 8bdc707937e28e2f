"""Ways to spoil a command that several areas share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from llama.parallel.mesh import SINGLE, Mesh
from tests.bad_inputs.setting import Setting, launched


def words(*more: str) -> Callable[[Setting], None]:
    return lambda setting: setting.more.extend(more)


def ranks(count: int, *more: str) -> Callable[[Setting], None]:
    """The first of so many ranks; the others do not come."""

    def spoil(setting: Setting) -> None:
        setting.more += more
        setting.environment |= launched(0, count)
        setting.patches += [mock.patch("llama.train.loop.start_processes"), alone()]

    return spoil


def alone() -> Any:
    """A patch: no groups are made, which a process alone would stand in for."""
    mesh = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]
    return mock.patch("llama.train.loop.mesh_of", lambda _: mesh)
