"""Small facts of which a run's identity, and the comparison of its ranks, are made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llama.data.packing import PackedRow


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """`(dotted name, value)` of everything in nested dictionaries that is not one itself."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(f"{name}.{key}".removeprefix("."), inner)
    else:
        yield name, value


def examples_digest(rows: Sequence[PackedRow]) -> str:
    """SHA-256, in hex, of every token id and label in order: what the tokenizer and the template
    made of the data."""
    whole = hashlib.sha256()
    for row in rows:
        for example in row:
            numbers = np.array([example.input_ids, example.labels], dtype="<i8")
            whole.update(numbers.shape[1].to_bytes(8, "little"))
            whole.update(numbers.tobytes())
    return whole.hexdigest()
