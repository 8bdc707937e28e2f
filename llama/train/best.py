"""The best of a run: what came of the step of the lowest held-out loss, kept whatever comes after.

    OUT/best/step-N/   what came of step N, which was the best so far
    OUT/adapter/       the same files under a second name: the best of all so far
    OUT/adapter_last/  what came of the last step; at the end of the run

(`model/` and `model_last/` with --method full.) A `best/step-N` stays as long as a checkpoint is
there that knows of no better step: a run that goes on from it may come to none. A checkpoint is on
the disk before the first `adapter/` is, so that a killed run can always be gone on with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from llama.checkpoint import RunState, Saver
from llama.errors import TrainingError
from llama.files.atomic import link_folder, remove_folder, remove_leftovers
from llama.files.run_folder import BEST
from llama.methods.about import About
from llama.methods.method import Hints
from llama.parallel.agreement import on_main
from llama.train.start.inputs import Inputs
from llama.train.start.resume import Start

T = TypeVar("T")

_NAME = re.compile(r"step-([1-9][0-9]{0,17})")


def heard(state: RunState, loss: float) -> bool:
    """Take in the held-out loss of the step that `state` was evaluated at last; gives whether it is
    the lowest so far. Of equal ones the earlier stays the best; NaN and infinity are never it."""
    lower = math.isfinite(loss) and (not state.best_step or loss < state.best_loss)
    if lower:
        state.best_step, state.best_loss, state.since_best = state.evaluated, loss, 0
    else:
        state.since_best += 1
    return lower


def forget(state: RunState) -> None:
    """Have no step be the best so far."""
    state.best_step, state.best_loss, state.since_best = 0, 0.0, 0


def is_worn_out(state: RunState, early_stop: int | None) -> bool:
    """Whether `--early_stop` ends a run that stands at `state`."""
    return early_stop is not None and state.since_best >= early_stop


class Best:
    """The best of one run, in `state` and on the disk. Every rank must call these. What cannot be
    written is a `TrainingError` on all of them; what was there is then as it was."""

    def __init__(self, start: Start, inputs: Inputs, saver: Saver) -> None:
        method = inputs.method
        self.state = start.run
        self.keeps = inputs.options.best and inputs.held_out is not None
        """Whether the best is kept, and not only known."""
        self.result = start.folder / method.RESULT
        self.last = start.folder / method.LAST
        self._folder = start.folder / BEST
        self._from = start.source and start.source.parent.parent / BEST
        self._method, self._saver = method, saver
        self._options = inputs.options
        self._mesh = saver.engine.mesh

    @property
    def kept_step(self) -> int:
        """Whose result the run gives, at its end."""
        is_best = self.keeps and self.state.best_step
        return self.state.best_step if is_best else self._saver.engine.steps

    @property
    def is_worn_out(self) -> bool:
        """Whether --early_stop ends the run here."""
        return is_worn_out(self.state, self._options.early_stop)

    def take_up(self) -> list[str]:
        """Have the folders be as they were when the run stood here; lines for the user. Where a
        checkpoint of another run is gone on from, its best is taken along."""
        step = self.state.best_step if self.keeps else 0
        if self._on_main(lambda: self._take_up(step)) or not step:
            return []
        forget(self.state)
        return [
            f"what came of step {step}, the best so far, is no longer in {self._folder}: the best "
            "is that of the steps from here on"
        ]

    def _take_up(self, step: int) -> bool:
        own = self._path(step)
        remove_leftovers(self._folder, lambda name: _NAME.fullmatch(name) is not None)
        if self.last.exists():  # of an end that is gone on from
            remove_folder(self.last)
        if step and not own.is_dir() and self._from and (self._from / own.name).is_dir():
            link_folder(self._from / own.name, own)
        is_there = step > 0 and own.is_dir()
        if is_there:
            link_folder(own, self.result)
        self._remove_all_but(step)
        return is_there

    def after(self, loss: float, about: About) -> Hints:
        """Take in the held-out loss of the step that the engine is at, and keep what came of it
        where it is the lowest."""
        if not heard(self.state, loss) or not self.keeps:
            return []
        own = self._path(self.state.best_step)
        hints = self._method.write(self._saver.engine, own, self._options.tokenizer, about)
        self._on_main(lambda: self._have_it_be(own))
        return [hint.replace(str(own), str(self.result)) for hint in hints]

    def _have_it_be(self, own: Path) -> None:
        self._saver.wait()  # a result beside no checkpoint at all is taken for no run's
        link_folder(own, self.result)
        self._forget_others()

    def _forget_others(self) -> None:
        self._saver.wait()  # a checkpoint that is being written may know of no better step yet
        self._remove_all_but(self.state.best_step)

    def at_the_end(self, about: About) -> Hints:
        """Write what came of the last step, at which the engine is: the run's result where no best
        is kept, else beside it."""
        engine, best_step = self._saver.engine, self.state.best_step
        if not (self.keeps and best_step):
            return self._method.write(engine, self.result, self._options.tokenizer, about)
        self._on_main(self._forget_others)
        if best_step != engine.steps:
            return self._method.write(engine, self.last, self._options.tokenizer, about)
        self._on_main(lambda: link_folder(self._path(best_step), self.last))
        return []

    def put_back(self) -> int:
        """Have the model be what the run gives, where that is soon done: training is over. Gives
        the step that it then is of."""
        steps = self._saver.engine.steps
        if self.kept_step == steps or not self._method.put_back(self._saver.engine, self.result):
            return steps
        return self.kept_step

    def has_checkpoint(self, step: int) -> bool:
        """Whether there is one of `step`, once those that are being written are."""

        def look() -> bool:
            self._saver.wait()
            return self._saver.store.path(step).is_dir()

        return on_main(self._mesh, look)

    def place_of(self, step: int) -> Path:
        """The folder of what came of `step`: the one that is kept, or the last."""
        return self.result if step == self.kept_step else self.last

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step}"

    def _remove_all_but(self, step: int) -> None:
        """Of what is kept, leave that of `step` and of the best by each checkpoint."""
        if not self._folder.is_dir():
            return
        matches = [_NAME.fullmatch(path.name) for path in self._folder.iterdir()]
        others = {int(match[1]) for match in matches if match} - {step}
        for other in sorted(others - self._saver.store.best_steps() if others else others):
            remove_folder(self._path(other))

    def _on_main(self, work: Callable[[], T]) -> T:
        def told() -> T:
            try:
                return work()
            except OSError as error:
                why = error.strerror or error
                raise TrainingError(f"{self.result}: the best cannot be written: {why}") from error

        return on_main(self._mesh, told)
