"""The main job: fine-tune, watch, compare, keep."""

from __future__ import annotations

import atexit
import contextlib
import copy
import math
import time
from typing import Any

import torch

from llama.assembly.engine import build_engine
from llama.assembly.groups import mesh_of
from llama.checkpoint import Checkpoint, Store, saver_of
from llama.checkpoint.shards import ShardedState
from llama.engine import Step, start_processes
from llama.engine.state import EngineState
from llama.errors import TrainingError, raise_if
from llama.files.json_text import json_text
from llama.files.run_folder import CHECKPOINTS, SUMMARY
from llama.fused.keeping import summary
from llama.launch.launchers import check_launch
from llama.launch.log import libraries_kept, log_file
from llama.launch.processes import launched_world_size, stop_processes
from llama.launch.stopping import Ends
from llama.methods.about import About
from llama.metrics.sinks.kinds import unready
from llama.metrics.speed import Stopwatch, peak_memory_bytes
from llama.model.transformer import Transformer
from llama.notes import LOG, is_first_rank, note, say
from llama.parallel.agreement import on_main
from llama.parallel.mesh import Mesh
from llama.settings import TrainOptions, checked_train
from llama.train import samples
from llama.train.best import Best
from llama.train.ending import UNKNOWN, closing, draw_report, finished_already, in_words
from llama.train.evaluation import Evaluations
from llama.train.first_steps import FirstSteps
from llama.train.life import show_life
from llama.train.origin import about, origin_of
from llama.train.record import write_json, write_record
from llama.train.reporter import Reporter, shown
from llama.train.start.fits import Verdict, require_fit
from llama.train.start.inputs import Inputs, read_inputs
from llama.train.start.overview import said_first
from llama.train.start.resume import Resumer, random_state
from llama.train.start.schedule import Schedule, schedule


def train(options: TrainOptions) -> int:
    """Run `launcher/train.py`; returns the exit code. `UserError` comes before any weights load."""
    check_launch()
    deepspeed = checked_train(options, launched_world_size())
    if is_first_rank():
        raise_if(unready(options.report_to))
    with libraries_kept():
        return _train(options, deepspeed)


def _train(options: TrainOptions, deepspeed: dict[str, Any]) -> int:
    status = 0
    device = start_processes()
    try:
        mesh = mesh_of(options)
        inputs = read_inputs(options, deepspeed, mesh)
        plan = schedule(inputs, mesh)
        verdict = require_fit(inputs, plan, mesh, device)
        with contextlib.closing(Resumer(inputs, plan, mesh, device)) as resumer:
            summary = resumer.start.finished
            if summary is None:
                LOG.begin(log_file(resumer.start.folder, mesh.rank))
                run = Run(inputs, plan, mesh, device, resumer, verdict)
                summary, status = run.run(), run.ends.status
            elif mesh.is_main:
                say("\n".join(finished_already(resumer.start)))
    finally:
        stop_processes()
    if mesh.is_main and options.json:
        print(json_text(summary))
    return status


class Run:
    """One run on one rank, from its start or from a checkpoint to its end."""

    def __init__(
        self,
        inputs: Inputs,
        plan: Schedule,
        mesh: Mesh,
        device: torch.device,
        resumer: Resumer,
        verdict: Verdict | None = None,
    ) -> None:
        self.inputs, self.options, self.plan = inputs, inputs.options, plan
        self.verdict = verdict
        self.mesh, self.device = mesh, device
        self.resumer, self.start = resumer, resumer.start
        self.folder, self.state = self.start.folder, self.start.run
        self.summary: dict[str, Any] = self.state.summary
        self.summary["status"] = "failed"
        self.summary.setdefault("checkpoint_seconds", 0.0)
        self.method = inputs.method
        self.origin = on_main(mesh, lambda: origin_of(inputs, plan))
        self.report = Reporter(self.start, self.method, plan.total_steps, mesh, device)
        for line in said_first(inputs, plan, self.verdict, mesh, self.start):
            self.report.say(line)
        for line in plan.resolved.filled:
            self.report.detail(line)
        self.engine = build_engine(inputs.source, self.options, plan.resolved, mesh, device)
        assert isinstance(self.engine.model, Transformer)
        self.model = self.engine.model
        if self.options.checkpointing == "auto":
            self.report.say(f"checkpointing auto: {summary(self.model.kept)}")
        resumer.restore(self.engine)
        self.ends = Ends(mesh.rank, self.folder, self.options.hang_timeout, self.start.going_on)
        self.first_steps = FirstSteps(self.engine, self.method, self.state, self.summary)
        self.watch = Stopwatch()
        store = Store(self.folder / CHECKPOINTS)
        self.saver = saver_of(self.method, self.engine, store, self.options.keep)
        self.best = Best(self.start, inputs, self.saver)
        more = (self.ends, self.best, self.report, self.summary)
        self.evaluations = Evaluations(self.engine, inputs, plan, *more)
        self._has_saved = on_main(mesh, lambda: bool(store.steps()))
        self._seconds_before = self.state.seconds
        self._started = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Evaluate, train every epoch, evaluate again, keep the result; returns the summary."""
        try:
            self._write_record()
            with self.ends:  # a signal that comes while the report is drawn ends nothing half
                self._train()
                self.summary["status"] = "interrupted" if self.ends.status else "finished"
                on_main(self.mesh, self._write_summary)
                on_main(self.mesh, lambda: draw_report(self.folder, self.report.say))
        except BaseException as error:
            self.summary |= {"status": "failed", "error": in_words(error)}
            with contextlib.suppress(OSError, TrainingError):
                self._write_summary()
                self.saver.wait()
            if self.report.begun:  # once what went wrong has been said: other ranks end meanwhile
                atexit.register(draw_report, self.folder, note)
            raise
        finally:
            self.report.close(self.summary)
        if not self.ends.status:
            precision = self.plan.resolved.precision
            ended = closing(self.inputs, self.folder, self.summary, precision)
            for line in [*ended, *self.report.how_to_look()]:
                self.report.say(line)
        return self.summary

    # What the run is, and how it ended

    def _write_record(self) -> None:
        def write() -> None:
            earlier = self.report.earlier()
            more = (self.resumer, self.verdict)
            record = write_record(self.inputs, self.plan, self.mesh, self.device, *more)
            self.report.begin(earlier, record, self.options.report_to)
            self.report.check()

        on_main(self.mesh, write)

    def _write_summary(self) -> None:
        self.summary["seconds"] = round(self._seconds(), 1)
        self.summary["peak_memory_bytes"] = peak_memory_bytes(self.device)
        if self.report.begun:  # else an earlier one's stays
            write_json(self.folder / SUMMARY, self.summary)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    # Training

    def _train(self) -> None:
        comparison = samples.Comparison(self.inputs, self.model, self.mesh)
        show_life(self.model)
        if self.start.source is None:
            self.summary |= {"steps": 0, "epoch_losses": []}
            self.evaluations.before()
            if self._stops_here():
                return
            self.state.samples_before = comparison.before()
        for line in self.best.take_up():
            self.report.say(line)
        if left_out := comparison.keep_to(self.state.samples_before):
            self.report.say(left_out)
        # an epoch that was begun is ended, even where no step of it is left
        while self.state.window or self._goes_on():
            self._epoch()
            if self.ends.status:
                return
        self._evaluate_where_due()  # a checkpoint from behind an epoch's end may be before that
        if not self.ends.status:
            self._finish(comparison)

    def _goes_on(self) -> bool:
        has_steps = self.engine.steps < self.plan.total_steps and not self.best.is_worn_out
        return has_steps and self.state.epoch < self.options.epochs

    def _epoch(self) -> None:
        """The rest of the epoch that the state is in; after it the state is in the next one."""
        state = self.state
        self.watch.lap()
        for window in self.plan.epochs.windows(state.epoch, state.window):
            if self._goes_on():  # the step before, also where the run is taken up there
                self._evaluate_where_due()
            if self.ends.status:
                return
            if not self._goes_on():
                break
            step = self.engine.step(window)
            state.window += 1
            if math.isfinite(step.loss_sum):
                state.loss_sum += step.loss_sum
                state.supervised += step.supervised
            self._after_step(step, self.watch.lap())
            if self.ends.status:
                return
        mean = state.loss_sum / state.supervised if state.supervised else None
        self.summary["epoch_losses"].append(mean)
        self.report.say(f"epoch {state.epoch}: average loss {shown(mean)}")
        state.epoch, state.window, state.loss_sum, state.supervised = state.epoch + 1, 0, 0.0, 0
        self._evaluate_where_due()

    def _after_step(self, step: Step, seconds: float) -> None:
        """Check, report, save where it is due or the run is to stop here."""
        state, number = self.state, self.engine.steps
        self.summary["steps"] = number
        self.first_steps.after(step, self.report.detail)
        state.tokens += step.tokens
        state.step_seconds += seconds
        self.summary["tokens_per_second"] = round(state.tokens / state.step_seconds, 1)
        self.report.step(number, state.epoch, step, seconds)
        failed = int(bool(self.saver.failed or self.report.failed))
        failed, wish = self.mesh.highest(failed, self.ends.wish)
        if failed:
            on_main(self.mesh, self._check_writing)
        stops = self.ends.stops(number, wish)
        if stops:
            self._say_stopped()
        if stops or self._is_due(self.options.save_every):
            self._save()

    def _finish(self, comparison: samples.Comparison) -> None:
        state, steps = self.state, self.engine.steps
        for line in self.first_steps.at_the_end():
            self.report.say(line)
        for hint in self.best.at_the_end(self._about(self.summary.get("eval_loss"))):
            self.report.say(hint)
        self.summary |= {
            "kept_step": self.best.kept_step,
            "early_stop": state.since_best if steps < self.plan.total_steps else None,
            "answers_step": (answering := self.best.put_back()),
            **({} if self.inputs.held_out else {"best_unknown": UNKNOWN}),
        }
        if said := comparison.both(self.state.samples_before):
            place, prompts = self.best.place_of(answering), comparison.prompts
            on_main(self.mesh, lambda: samples.keep(self.folder, place, prompts, said))
            self.report.samples(answering, said)

    # Evaluating

    def _evaluate_where_due(self) -> None:
        """Evaluate the step that the engine is at, once, if that is due there; keep what is best,
        and end the run where --early_stop does. The checkpoint of this step has been made by now,
        if it has one: its state says that the evaluation is still to come."""
        state, steps = self.state, self.engine.steps
        if state.evaluated == steps or not self._is_due(self.options.eval_every):
            return
        if self.best.keeps and not self._has_saved:  # see `llama/train/best.py`
            self._save()
        with self.watch.paused():
            self.evaluations.now(self._about)
        if self._stops_here():
            return
        if self.best.is_worn_out and steps < self.plan.total_steps:
            self._stop_early()

    def _stop_early(self) -> None:
        """Have a checkpoint of the step that the engine is at: the run may be gone on with."""
        if not self.best.has_checkpoint(self.engine.steps):
            self._save(last=True)
        self.report.say(
            f"stopped early after step {self.engine.steps}: {self.state.since_best} evaluations "
            "without a lower held-out loss"
        )

    def _stops_here(self) -> bool:
        """Whether the run ends between two steps, as it was asked to in an evaluation; there is a
        checkpoint of the step that the engine is at then. Before the first there is nothing to
        keep."""
        steps, (wish,) = self.engine.steps, self.mesh.highest(self.ends.wish)
        if not self.ends.stops(steps, wish):
            return False
        if steps and not self.best.has_checkpoint(steps):
            self._save()
        self._say_stopped()
        return True

    def _say_stopped(self) -> None:
        where = f"stopped after step {self.engine.steps}"
        self.report.say(f"{where}; {self.start.going_on} from there")

    def _about(self, eval_loss: float | None) -> About:
        return about(self.origin, self.engine.steps, self.summary, eval_loss)

    # Saving

    def _is_due(self, every: int | None) -> bool:
        """Whether what is done each `every` steps, or each epoch, and at the end is to be done."""
        steps, ends = self.engine.steps, (self.plan.total_steps, self.start.end_before)
        ends_epoch = self.state.window in (0, self.plan.epochs.windows_per_epoch)
        return steps in ends or (steps % every == 0 if every else ends_epoch)

    def _save(self, last: bool = False) -> None:
        """A checkpoint of what is done, before the epoch's end is dealt with: its evaluation may
        take long, and is made again by a run that goes on from here. `last` says that the run ends
        here, as it does where it is to stop and after its last step."""
        with self.watch.paused():
            began = time.monotonic()
            last = last or bool(self.ends.status) or self.engine.steps == self.plan.total_steps
            self.saver.save(self._checkpoint, self.report.sync, last)
            self._has_saved = True
            if self.mesh.world_size > 1:  # each save compares the ranks first
                self.summary["replica_checks"] = self.summary.get("replica_checks", 0) + 1
            self.summary["checkpoint_seconds"] += time.monotonic() - began

    def _checkpoint(self, engine_state: EngineState | ShardedState) -> Checkpoint:
        self.state.metrics_lines = self.report.lines
        self.state.seconds = self._seconds()
        return Checkpoint(
            engine=engine_state,
            run=copy.deepcopy(self.state),
            total_steps=self.plan.total_steps,
            identity=self.resumer.identity,
            topology=self.resumer.topology,
            random=random_state(),
            beside={} if self.method.SHARDED else self._about(eval_loss=None).files(),
        )

    def _check_writing(self) -> None:
        """A disk that fails on the main rank ends the run on every rank, which all say why."""
        self.saver.check()
        self.report.check()
