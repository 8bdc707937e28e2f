"""Where the numbers of a run go: JSON lines, TensorBoard, the terminal; and what they are made of.

The one importer of TensorBoard. A rank that does not report has a `NullSink`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from llama.model.config import LINEARS, ModelConfig

# Dense half-precision matrix rate by the makers' data sheets, FLOP/s, by a part of the name that
# CUDA gives the device. What is not listed has no MFU.
_PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12, "A10G": 70e12}


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
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(lines or []), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self.lines += 1

    def sync(self) -> None:
        """Have all lines on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars, sample texts and histograms for TensorBoard."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """What an earlier process wrote of the steps after `step` no longer counts."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only one rank does

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, step)

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        self._writer.add_histogram(name, values, step)

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


class Progress:
    """A bar on a terminal, with loss, speed and time left; elsewhere a plain line now and then."""

    EVERY = 10.0
    """Seconds between plain lines."""

    def __init__(self, total: int, enabled: bool, done: int = 0) -> None:
        self._enabled = enabled
        self._plain = enabled and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="step",
            disable=not enabled or self._plain,
            dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self._total = total
        self._done = done
        self._here = 0
        self._seconds = 0.0
        self._printed = time.monotonic()

    def step(self, epoch: int, loss: float, tokens_per_second: float, seconds: float) -> None:
        self._done += 1
        self._here += 1
        self._seconds += seconds
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tok/s", refresh=False)
        self._bar.update()
        now = time.monotonic()
        if self._plain and (now - self._printed >= self.EVERY or self._done == self._total):
            self._printed = now
            left = self._seconds / self._here * (self._total - self._done)
            self.say(
                f"step {self._done}/{self._total}  epoch {epoch}  loss {loss:.3f}  "
                f"{tokens_per_second:,.0f} tok/s  {_clock(left)} left"
            )

    def say(self, line: str) -> None:
        """A line of the log, on standard error, above the bar."""
        if self._enabled:
            self._bar.write(line, file=sys.stderr) if not self._plain else _print(line)

    def close(self) -> None:
        self._bar.close()


def _print(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # `... | tee log` ends first at Ctrl-C; we save yet
        print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Stopwatch:
    """Seconds of work between `lap`s; what is done under `paused` does not count."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._last += time.perf_counter() - started


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was held so far: on CUDA by tensors, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step_flops(config: ModelConfig, tokens: int, supervised: int) -> float:
    """Floating-point operations that a LoRA step needs, recomputation not counted: 2 for each
    weight and token forward, 2 backward (a frozen weight has no gradient of its own). The
    embedding is a look-up, the output matrix meets supervised tokens only, and the adapters and
    attention within short documents are left out as small: MFU errs on the low side."""
    block = sum(rows * columns for rows, columns in map(config.linear_shape, LINEARS))
    weights = config.n_layers * block * tokens + config.vocab_size * config.dim * supervised
    return 4.0 * weights


def mfu(flops_per_second: float, devices: int, device: torch.device) -> float | None:
    """Share of the devices' peak that `flops_per_second` is; None where the peak is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)
    return None if peak is None else flops_per_second / (peak * devices)
