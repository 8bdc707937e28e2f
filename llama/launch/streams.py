"""Standard streams that end no run.

A run is not for its terminal: standard error may be closed (`2>&-`, cron), full, or a pipe whose
reader has gone, and may know ASCII alone, where the text to be written does not. What cannot be
written there is left out, and the run goes on. Standard output holds results: what could not be
written there is remembered, and the program ends with 1.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Stream(io.FileIO):
    """The bytes of a standard stream. `write` takes everything and raises nothing."""

    def __init__(self, descriptor: int, is_closed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.lost: OSError | None = None
        """Why something could not be written, the first time."""
        self._is_closed = is_closed

    def write(self, data: ReadableBuffer, /) -> int:
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            if self._is_closed:
                raise OSError(errno.EBADF, "it is closed")
            while left:
                written = super().write(left)
                if written is None:  # a full pipe that does not block, of whoever started us
                    select.select([], [self], [])
                left = left[written or 0 :]
        except OSError as error:
            self.lost = self.lost or error
        return size


def open_streams() -> None:
    """Put streams that do not fail in the place of `sys.stdout` and `sys.stderr`. To be called
    before anything is opened: a file of the run would get the number of a closed stream, and what
    a library writes to that stream would go into the file."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if name != "stdin":
            setattr(sys, name, _lasting(descriptor, getattr(sys, name)))


def _lasting(descriptor: int, before: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """A text stream to `descriptor` that is as the one `before`, which is None where Python found
    the stream closed."""
    stream = Stream(descriptor, is_closed=before is None)
    unbuffered = before is not None and before.write_through  # python -u
    if before is not None:
        with contextlib.suppress(OSError):
            before.flush()
    return io.TextIOWrapper(
        stream if unbuffered else io.BufferedWriter(stream),  # pyright: ignore[reportArgumentType]
        encoding="utf-8" if before is None else before.encoding,
        errors="backslashreplace",
        line_buffering=before is not None and before.line_buffering,
        write_through=unbuffered,
    )


def lost_output() -> OSError | None:
    """Why something written to standard output did not arrive; None where all of it did, or where
    standard output is not one of `open_streams`."""
    buffer = getattr(sys.stdout, "buffer", None)
    stream = getattr(buffer, "raw", buffer)
    return stream.lost if isinstance(stream, Stream) else None
