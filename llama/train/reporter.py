"""What a run says of itself: in metrics.jsonl and norms.jsonl, in the places of --report_to and on
the terminal, all by the main rank."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

import torch

from llama.engine import Step
from llama.engine.state import Tensors
from llama.errors import TrainingError
from llama.files.json_text import json_text
from llama.files.run_folder import CHECKPOINTS, METRICS, NORMS
from llama.methods.method import Method
from llama.metrics.json_lines import JSONLines
from llama.metrics.names import BEST_LOSS, EVAL_LOSS, grouped
from llama.metrics.progress import Progress
from llama.metrics.sinks.places import Places
from llama.metrics.sinks.sink import Ids, Watched
from llama.metrics.speed import mfu, peak_memory_bytes, step_flops
from llama.notes import LOG
from llama.pages.sample import Sample
from llama.parallel.mesh import Mesh
from llama.train import samples
from llama.train.start.resume import Start

_NO_SETTINGS = ("command", "working_directory", "notes", "resumed", "plan")
"""Of run.json, what is no setting: not told elsewhere."""


@dataclass(frozen=True)
class Earlier:
    """Lines of a run's files that were written before the checkpoint."""

    lines: list[str]
    """Of metrics.jsonl."""
    norms: list[str]
    """Of norms.jsonl."""


class Reporter:
    """Takes what happened. Nothing is written before `begin`, nor by any rank but the main one."""

    def __init__(
        self, start: Start, method: Method, total_steps: int, mesh: Mesh, device: torch.device
    ) -> None:
        self._method = method
        self._mesh = mesh
        self._device = device
        self.progress = Progress(total_steps, mesh.is_main, start.step)
        self.failed: OSError | None = None
        """What went wrong in writing, on this rank; the others are to be told."""
        self.begun = False
        """On the main rank, whether the run has: what is in its folder may be written anew."""
        self._lines: JSONLines | None = None
        self._norms: JSONLines | None = None
        self._start = start
        self._watched = Watched(start.folder, start.step, Ids(start.folder))
        self._places = Places()
        self._best = math.inf

    def earlier(self) -> Earlier:
        """What an earlier process of this run has written. For the main rank. Raises
        `TrainingError` where that cannot be read."""
        return Earlier(lines_before(self._start), norms_before(self._start))

    def begin(self, earlier: Earlier, config: Mapping[str, Any], report_to: Sequence[str]) -> None:
        """Write from now on, behind what is `earlier`, and have the run be watched in the places
        `report_to`; `config` is what it is, as run.json has it. For the main rank, once nothing is
        left on which the start of the run may fail: what an earlier process has written after the
        checkpoint is gone then."""
        self.begun = True
        with self._guarded():
            self._lines = JSONLines(self._start.folder / METRICS, earlier.lines)
            self._norms = JSONLines(self._start.folder / NORMS, earlier.norms)
            told = {key: value for key, value in config.items() if key not in _NO_SETTINGS}
            self._places.open(report_to, self._watched, _as_json(told), self.say)
            for line in read_whole(earlier.lines):
                self._tell(line)

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
            **_of_b(step),
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
        self._put(number, values)
        if step.skip_reason:
            scale = (
                "" if step.loss_scale is None else f"; the loss scale is now {step.loss_scale:g}"
            )
            self.say(f"step {number} skipped: {step.skip_reason}{scale}")
        self.progress.step(epoch, step.loss, rate, seconds)

    def evaluation(self, number: int, epochs: float, loss: float) -> None:
        """The held-out loss of step `number`, after so many epochs, of one perhaps a part."""
        epochs = int(epochs) if epochs == int(epochs) else round(epochs, 4)
        self._put(number, {"epoch": epochs, "eval_loss": loss})
        self.say(f"held-out loss {loss:.4f} after {epochs:.4g} epochs")

    def norms(self, number: int, norms: Tensors, histogram_of: Callable[[str], str]) -> None:
        """Of every tensor that trains, by name; and over the layers a histogram by its name."""
        if self._norms:
            with self._guarded():
                self._norms.write(number, {"norms": {n: float(v) for n, v in norms.items()}})
        together: dict[str, list[torch.Tensor]] = {}
        for name, value in norms.items():
            together.setdefault(histogram_of(name), []).append(value)
        for name, values in sorted(together.items()):
            stacked = torch.stack(values)
            finite = stacked[stacked.isfinite()].float().cpu()
            if finite.numel():  # of none there is nothing to draw
                with self._guarded():
                    self._places.histogram(number, name, finite)

    def samples(self, number: int, said: Sequence[Sample]) -> None:
        """Answers before the training, and of the model as it was after step `number`."""
        with self._guarded():
            self._places.samples(number, said)
        self.say(f"\n{samples.as_text(said)}\n")

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

    def close(self, summary: Mapping[str, Any]) -> None:
        """`summary` is what the run came to, its status included."""
        with self._guarded():
            self._places.end(summary["status"], _as_json(summary))
        for lines in (self._lines, self._norms):
            if lines:
                with self._guarded():
                    lines.close()
        self.progress.close()

    def how_to_look(self) -> list[str]:
        """What is to be typed or opened to see the run, one line for each place."""
        return [f"watch: {way}" for way in self._places.how_to_look()]

    def _put(self, number: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the same wherever the run is watched."""
        if self._lines:
            with self._guarded():
                self._lines.write(number, values)
                self._tell({"step": number, **values})

    def _tell(self, line: Mapping[str, Any]) -> None:
        number, numbers = line["step"], grouped(line)
        loss = numbers.get(EVAL_LOSS)
        if loss is not None and number:  # before the first step there is nothing to keep
            self._best = numbers[BEST_LOSS] = min(self._best, loss)
        self._places.scalars(number, numbers)

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


def _as_json(document: Mapping[str, Any]) -> dict[str, Any]:
    """With null for a number that is none, and a text for what JSON has no form for, as a path."""
    return json.loads(json_text(document, default=str))


def lines_before(start: Start) -> list[str]:
    """The lines of metrics.jsonl that were written before the checkpoint: those after it are
    written again."""
    return _earlier(start, METRICS, lambda lines: islice(lines, start.run.metrics_lines))


def read_whole(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Those of `lines` that can be read: one that is spoilt is not told again, and ends no run."""
    for line in lines:
        with suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict) and isinstance(found.get("step"), int):
                yield found


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
    try:  # a byte that a disk has spoilt is carried along as it is
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return list(kept(file))
    except OSError as error:
        why = error.strerror or error
        raise TrainingError(
            f"{path}: cannot be read: {why}; make it readable, or take it away to go on without it"
        ) from error


def _step(line: str) -> float:
    """Infinite for a line that a killed run did not end: it is of no step before a checkpoint."""
    return next((found["step"] for found in read_whole([line])), math.inf)


def _of_b(step: Step) -> dict[str, float]:
    rate = step.learning_rate_b
    return {} if rate is None else {"learning_rate_b": rate}
