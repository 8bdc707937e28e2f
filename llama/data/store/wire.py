"""What passes between a process and those that make parts of data for it: pickled pieces, each
after its length in 8 bytes."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import IO, Any

from llama.data.store.making import Made


@dataclass(frozen=True)
class Answer:
    """What came of one part."""

    made: Made | None = None
    unsound: str | None = None
    failed: str | None = None
    """The traceback of an error of this program's own."""


def send(stream: IO[bytes], piece: Any) -> None:
    """Raises OSError where the other end is gone."""
    content = pickle.dumps(piece, pickle.HIGHEST_PROTOCOL)
    stream.write(len(content).to_bytes(8, "little"))
    stream.write(content)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Raises EOFError where the other end is gone."""
    length = stream.read(8)
    content = stream.read(int.from_bytes(length, "little")) if len(length) == 8 else b""
    if not content:
        raise EOFError
    return pickle.loads(content)
