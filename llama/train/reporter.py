"""What a run says of itself: metrics.jsonl, norms.jsonl, TensorBoard and the terminal, all by the
main rank."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import Any

import torch

from llama.engine import Step
from llama.engine.state import Tensors
from llama.errors import TrainingError
from llama.files.run_folder import CHECKPOINTS, METRICS, NORMS
from llama.methods.method import Method
from llama.metrics.progress import Progress
from llama.metrics.sinks import JSONLSink, NullSink, Sink, Sinks, TensorBoardSink
from llama.metrics.speed import mfu, peak_memory_bytes, step_flops
from llama.notes import LOG
from llama.parallel.mesh import Mesh
from llama.train.start.resume import Start


class Reporter:
    """Takes what happened. Nothing is written where the rank is not the main one."""

    def __init__(
        self, start: Start, method: Method, total_steps: int, mesh: Mesh, device: torch.device
    ) -> None:
        self._method = method
        self._mesh = mesh
        self._device = device
        self.progress = Progress(total_steps, mesh.is_main, start.step)
        self.failed: OSError | None = None
        """What went wrong in writing, on this rank; the others are to be told."""
        self._lines: JSONLSink | None = None
        self._norms: Sink = NullSink()
        self._sink: Sink = NullSink()
        if mesh.is_main:
            with self._guarded():
                self._lines = JSONLSink(start.folder / METRICS, lines_before(start))
                self._norms = JSONLSink(start.folder / NORMS, norms_before(start))
                tensorboard = TensorBoardSink(start.folder / "tensorboard", start.step)
                self._sink = Sinks(self._lines, tensorboard)

    def say(self, line: str) -> None:
        self.progress.say(line)

    def detail(self, line: str) -> None:
        """A line that is for the log alone."""
        if self._mesh.is_main:
            LOG.write(line)

    def step(self, number: int, epoch: int, step: Step, seconds: float) -> None:
        """Step `number`, which took `seconds`."""
        rate = step.tokens / seconds
        method = self._method
        flops = step_flops(method.config, step.tokens, step.supervised, method.WEIGHT_GRADIENTS)
        flops /= seconds
        values: dict[str, Any] = {
            "epoch": epoch,
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "loss_scale": step.loss_scale,
            "skipped": not step.applied,
            **({"skip_reason": step.skip_reason} if step.skip_reason else {}),
            "tokens": step.tokens,
            "supervised_tokens": step.supervised,
            "seconds": seconds,
            "tokens_per_second": rate,
            "mfu": mfu(flops, self._mesh.world_size, self._device),
            "peak_memory_bytes": peak_memory_bytes(self._device),
        }
        with self._guarded():
            self._sink.scalars(number, values)
        if step.skip_reason:
            scale = (
                "" if step.loss_scale is None else f"; the loss scale is now {step.loss_scale:g}"
            )
            self.say(f"step {number} skipped: {step.skip_reason}{scale}")
        self.progress.step(epoch, step.loss, rate, seconds)

    def evaluation(self, number: int, epochs: float, loss: float) -> None:
        """The held-out loss of step `number`, after so many epochs, of one perhaps a part."""
        epochs = int(epochs) if epochs == int(epochs) else round(epochs, 4)
        with self._guarded():
            self._sink.scalars(number, {"epoch": epochs, "eval_loss": loss})
        self.say(f"held-out loss {loss:.4f} after {epochs:.4g} epochs")

    def norms(self, number: int, norms: Tensors, histogram_of: Callable[[str], str]) -> None:
        """Of every tensor that trains, by name; and over the layers a histogram by its name."""
        with self._guarded():
            self._norms.scalars(number, {"norms": {n: float(v) for n, v in norms.items()}})
        together: dict[str, list[torch.Tensor]] = {}
        for name, value in norms.items():
            together.setdefault(histogram_of(name), []).append(value)
        for name, values in sorted(together.items()):
            with self._guarded():
                self._sink.histogram(number, name, torch.stack(values))

    def samples(self, number: int, text: str) -> None:
        with self._guarded():
            self._sink.text(number, "samples", f"```\n{text}\n```")
        self.say(f"\n{text}\n")

    @property
    def lines(self) -> int:
        """Of metrics.jsonl, on the main rank."""
        return self._lines.lines if self._lines else 0

    def sync(self) -> None:
        """Have metrics.jsonl on the disk. Any thread may call it."""
        if self._lines:
            self._lines.sync()

    def check(self) -> None:
        """Raise `TrainingError` where something could not be written. For the main rank."""
        if self.failed is not None:
            raise TrainingError(f"the run's metrics cannot be written: {self.failed}")

    def close(self) -> None:
        with self._guarded():
            self._sink.close()
            self._norms.close()
        self.progress.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A full disk on this rank is for every rank to know, at the end of the step."""
        try:
            yield
        except OSError as error:
            self.failed = self.failed or error


def shown(loss: float | None) -> str:
    """A loss of the summary, which has none where it was no number and went through a file."""
    return "nan" if loss is None else f"{loss:.4f}"


def lines_before(start: Start) -> list[str]:
    """The lines of metrics.jsonl that were written before the checkpoint: those after it are
    written again."""
    return _earlier(start, METRICS, lambda lines: islice(lines, start.run.metrics_lines))


def norms_before(start: Start) -> list[str]:
    """The same of norms.jsonl: they are taken with each evaluation."""
    done = start.run.evaluated
    return _earlier(start, NORMS, lambda lines: takewhile(lambda line: _step(line) <= done, lines))


def _earlier(start: Start, name: str, kept: Callable[[Iterable[str]], Iterable[str]]) -> list[str]:
    """What `kept` takes of the lines of the file `name` of the run that the checkpoint is of."""
    if start.source is None or start.source.parent.name != CHECKPOINTS:
        return []
    path = start.source.parent.parent / name
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return list(kept(file))


def _step(line: str) -> float:
    """Infinite for a line that a killed run did not end: it is of no step before a checkpoint."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
