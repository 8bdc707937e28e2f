"""The held-out loss of a run: made, told of, and what has the lowest kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from llama.assembly.use import loss_of_share, mean_loss
from llama.data.packing import PackedRow
from llama.data.types import Batch
from llama.engine import Engine
from llama.launch.stopping import Ends
from llama.methods.about import About
from llama.parallel.agreement import on_main
from llama.train.best import Best
from llama.train.reporter import Reporter
from llama.train.start.inputs import Inputs
from llama.train.start.schedule import Schedule

_BETWEEN = 4
"""Micro-batches of an evaluation from one question whether to go on to the next."""


def held_out_loss(
    engine: Engine,
    rows: Sequence[PackedRow],
    micro_batch: int,
    is_to_stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """The mean loss over the supervised tokens of `rows`, without dropout; to the last digit the
    same on every rank, as what is kept follows from it. Every rank must call it. None where
    `is_to_stop`, which is asked on every rank and answers alike on all, has ended it first."""
    mesh, device = engine.mesh, engine.device
    stopped = False

    def until_stopped(batches: Iterable[Batch]) -> Iterator[Batch]:
        nonlocal stopped
        for number, batch in enumerate(batches):  # every rank has as many
            stopped = number % _BETWEEN == 0 and is_to_stop()
            if stopped:
                return
            yield batch

    share = loss_of_share(engine.model, rows, micro_batch, mesh, device, until_stopped)
    if stopped:
        return None
    mean, _ = mean_loss(share, mesh, device)
    return on_main(mesh, lambda: mean)


class Evaluations:
    """Those of one run. Every rank must call these. One that is ended, as a rank was asked to stop,
    leaves no trace: the run that goes on from there makes it anew."""

    def __init__(
        self,
        engine: Engine,
        inputs: Inputs,
        plan: Schedule,
        ends: Ends,
        best: Best,
        report: Reporter,
        summary: dict[str, Any],
    ) -> None:
        self._engine, self._inputs, self._plan = engine, inputs, plan
        self._ends, self._best, self._report, self._summary = ends, best, report, summary

    def before(self) -> None:
        """Of the model as the run begins with it."""
        loss, _ = self._made()
        self._summary["eval_loss_before"] = loss
        if loss is not None and not math.isfinite(loss):
            self._report.say(
                f"the held-out loss is {loss} before the first step: the model itself gives no "
                "number on some held-out row, and steps of such rows are skipped"
            )

    def now(self, about: Callable[[float | None], About]) -> None:
        """Of the step that the engine is at, and keep what is best; `about` says what is known of
        it once the loss is."""
        loss, was_made = self._made()
        if not was_made:
            return
        steps, method, state = self._engine.steps, self._inputs.method, self._best.state
        state.evaluated, self._summary["eval_loss"] = steps, loss
        self._report.norms(steps, method.norms(self._engine), method.histogram_of)
        if loss is not None:
            for hint in self._best.after(loss, about(loss)):
                self._report.say(hint)
            best = (state.best_step, state.best_loss) if state.best_step else (None, None)
            self._summary["best_step"], self._summary["best_eval_loss"] = best

    def _is_to_stop(self) -> bool:
        return any(self._engine.mesh.highest(self._ends.wish))

    def _made(self) -> tuple[float | None, bool]:
        """The loss, None where no rows are held out; and whether it was come to."""
        held_out, steps = self._inputs.held_out, self._engine.steps
        if held_out is None:
            return None, True
        micro_batch = self._plan.resolved.micro_batch
        loss = held_out_loss(self._engine, held_out.packed, micro_batch, self._is_to_stop)
        if loss is None:
            return None, False
        # of steps: the state is in the next epoch where --max_steps ended one
        self._report.evaluation(steps, steps / self._plan.epochs.windows_per_epoch, loss)
        return loss, True
