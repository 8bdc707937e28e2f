"""Where the numbers of a run go: JSON lines, TensorBoard, the terminal; and what they are made of.

The one importer of TensorBoard. A rank that does not report has a `NullSink`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Protocol

import torch

from llama.files.atomic import write_file
from llama.files.json_text import json_text


class Sink(Protocol):
    """Takes the numbers of one moment of a run."""

    def scalars(self, step: int, values: dict[str, Any]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None: ...

    def close(self) -> None: ...


class NullSink:
    """Takes everything and keeps nothing."""

    def scalars(self, step: int, values: dict[str, Any]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None: ...

    def close(self) -> None: ...


class JSONLSink(NullSink):
    """One line for each moment, flushed at once: a killed run keeps what it had reached."""

    def __init__(self, path: Path, lines: list[str] | None = None) -> None:
        """`lines` are those that the file begins with."""
        self.lines = len(lines or [])
        write_file(path, "".join(lines or []).encode())
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json_text({"step": step, **values}) + "\n")
        self.lines += 1

    def sync(self) -> None:
        """Have all lines on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars, sample texts and histograms for TensorBoard, which are of finite numbers alone."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """What an earlier process wrote of the steps after `step` no longer counts."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only one rank does

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, step)

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        finite = values[values.isfinite()]
        if finite.numel():  # it refuses to draw none
            self._writer.add_histogram(name, finite, step)

    def close(self) -> None:
        self._writer.close()


class Sinks:
    """Several sinks as one."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.scalars(step, values)

    def text(self, step: int, name: str, text: str) -> None:
        for sink in self._sinks:
            sink.text(step, name, text)

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        for sink in self._sinks:
            sink.histogram(step, name, values)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
