"""Small facts of which a run's identity, and the comparison of its ranks, are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llama.data.packing import Packed, PackedRow, digest_of


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """`(dotted name, value)` of everything in nested dictionaries that is not one itself."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(f"{name}.{key}".removeprefix("."), inner)
    else:
        yield name, value


def examples_digest(rows: Sequence[PackedRow]) -> str:
    """As `digest_of`, which is known already of rows that come from the cache."""
    return rows.digest if isinstance(rows, Packed) else digest_of(rows)
