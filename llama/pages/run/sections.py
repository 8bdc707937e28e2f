"""The sections of the page of one run, in the order in which a reader asks: how did it end and what
did it learn, what was it, what did it cost, can it be trusted, how is it done again."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from llama.files.run_folder import METRICS, NORMS, RECORD, SAMPLES, SUMMARY
from llama.pages.figures import Figure
from llama.pages.page import Block, Code, Columns, Drawing, Section, Table, Text
from llama.pages.run import plots, words
from llama.pages.run.files import HEADINGS, RunFiles, number
from llama.pages.run.recorded import checks, notes, reproduce, what_was_run
from llama.pages.run.words import NONE

SKIPPED_SHOWN = 20
EVALUATIONS_SHOWN = 100
"""Beyond that many, those at an epoch's end and the best."""


def sections(run: RunFiles) -> list[Section]:
    """Of the page of `run`."""
    trained = "parameters" if run.is_full else "adapter"
    return [
        Section("Outcome", [*_ending(run), outcome(run), *_loss(run)]),
        Section("Answers before and after", answers(run)),
        Section("What was run", what_was_run(run)),
        Section("Throughput and memory", _cost(run)),
        Section("Learning rate and gradients", _steps(run)),
        Section(f"The {trained}, by layer", _norms(run)),
        Section("What was checked", [checks(run)]),
        Section("Notes, and where it was resumed", notes(run)),
        Section("How to reproduce it", reproduce(run)),
    ]


def outcome(run: RunFiles) -> Table:
    """The numbers that are asked for first."""
    summary, best = run.summary, run.best
    first = next((one.loss for one in run.evaluations if one.step == 0), None)
    final = next((one.loss for one in reversed(run.evaluations) if one.step > 0), None)
    done = summary.get("steps", run.last_step)
    losses = summary.get("epoch_losses")
    last = losses[-1] if isinstance(losses, list) and losses else None
    rows = [
        (
            "status",
            f"{run.status}, {words.count(done)} of {words.count(run.of_record('steps'))} steps",
        ),
        ("training loss, last epoch", words.loss(last)),
        (
            "held-out loss",
            f"{words.loss(summary.get('eval_loss_before', first))} before, "
            f"{words.loss(summary.get('eval_loss', final))} at the end",
        ),
        (
            "lowest held-out loss",
            f"{words.loss(best.loss)} at step {best.step}" if best else NONE,
        ),
        ("the run gives", _given(run)),
        ("time", words.seconds(summary.get("seconds"))),
        ("tokens per second", words.count(summary.get("tokens_per_second"))),
        ("peak memory", words.gib(plots.peak_memory(run))),
    ]
    return Table((), rows, source=f"{SUMMARY}; {RECORD}: steps; {METRICS}: eval_loss")


def _given(run: RunFiles) -> str:
    step, last = number(run.summary.get("kept_step")), number(run.summary.get("steps"))
    if step is None:
        return NONE
    why = "the last" if step == last else "the best"
    if isinstance(unknown := run.summary.get("best_unknown"), str):
        why += f": {unknown}"
    early = number(run.summary.get("early_stop"))
    ended = f"; ended early, after {early:.0f} evaluations without a lower loss" if early else ""
    return f"step {step:.0f}, {why}{ended}"


def _ending(run: RunFiles) -> list[Block]:
    blocks: list[Block] = []
    if "error" in run.summary:
        error = str(run.summary["error"])
        blocks.append(Code(error, title="What ended it", source=f"{SUMMARY}: error", wide=True))
    elif not run.summary:
        text = (
            f"There is no {SUMMARY}: the run is still going, or it was killed. "
            f"The last step that it wrote is {run.last_step}."
        )
        blocks.append(Text(text, wide=True))
    if run.problems:
        rows = [(str(index), problem) for index, problem in enumerate(run.problems, start=1)]
        blocks.append(Table((), rows, title="What is missing or could not be read", wide=True))
    return blocks


def _drawn(figure: Figure | None, source: str) -> list[Block]:
    return [] if figure is None else [Drawing(figure, source=source)]


def _loss(run: RunFiles) -> list[Block]:
    if not run.steps["step"] and not run.evaluations:
        return [Text("No step and no evaluation was written.")]
    blocks = _drawn(plots.loss_figure(run), f"{METRICS}: loss, eval_loss by step")
    losses = run.summary.get("epoch_losses")
    means = losses if isinstance(losses, list) else []
    held_out = {one.epoch: one for one in run.evaluations}
    mean_of: dict[float, float | None] = dict(enumerate(means, start=1))
    if len(held_out) > EVALUATIONS_SHOWN:
        held_out = {
            epoch: one for epoch, one in held_out.items() if epoch == int(epoch) or one is run.best
        }
    rows = []
    for epoch in sorted({0, *mean_of, *held_out} if means else held_out):
        evaluation, mean = held_out.get(epoch), mean_of.get(epoch)
        lowest = " (lowest)" if evaluation is not None and evaluation is run.best else ""
        rows.append(
            (
                f"{epoch:g}",
                words.loss(mean),
                (words.loss(evaluation.loss) + lowest) if evaluation else NONE,
                str(evaluation.step) if evaluation else NONE,
            )
        )
    head = ("epochs done", "training, mean of the epoch", "held-out", "at step")
    source = f"{SUMMARY}: epoch_losses; {METRICS}: eval_loss"
    return [*blocks, *([Table(head, rows, source=source)] if rows else [])]


def answers(run: RunFiles) -> list[Block]:
    """Each prompt with the text before and after, those of the training rows first."""
    blocks: list[Block] = []
    step = number(run.summary.get("answers_step"))
    after = "after" if step is None else f"after step {step:.0f}"
    for rows, heading in HEADINGS.items():
        for index, sample in enumerate(one for one in run.samples if one["rows"] == rows):
            if index == 0:
                blocks.append(
                    Text("", title=heading, wide=True, source=f'{SAMPLES}: "rows": "{rows}"')
                )
            texts = [("prompt", "prompt"), ("before", "before"), ("after", after)]
            columns = [(title, sample[name]) for name, title in texts]
            blocks.append(Columns(columns, wide=True))
    return blocks or [Text(f"There is no {SAMPLES}: it is written at the end of a run.")]


def _cost(run: RunFiles) -> list[Block]:
    rate = plots.step_figure(run, "tokens_per_second", "tokens/s", "Throughput", colour=2)
    blocks = _drawn(rate, f"{METRICS}: tokens_per_second by step")
    on_gpu = run.of_record("device_type") == "cuda"
    what = "of CUDA tensors" if on_gpu else "of the whole process, which has no GPU"
    plan = run.of_record("plan")
    source = f"{SUMMARY}: peak_memory_bytes, the most {what}"
    source += f"; {RECORD}: plan" if isinstance(plan, dict) else ""
    blocks += _drawn(plots.memory_figure(run), source)
    rows = [("measured peak", words.gib(plots.peak_memory(run)))]
    if isinstance(plan, dict):
        rows += [
            ("planned peak of tensors", words.gib(plan.get("peak_bytes"))),
            ("planned as the driver shows it", words.gib(plan.get("used_bytes"))),
            ("free when it was planned", words.gib(plan.get("available_bytes"))),
            ("planned time of a step", words.seconds(plan.get("seconds_per_step"))),
            ("its measured median", words.seconds(_median(run.steps["seconds"]))),
        ]
        measured, planned = plots.peak_memory(run), number(plan.get("peak_bytes"))
        if on_gpu and measured is not None and planned:
            rows.append(("measured against planned", f"{measured / planned - 1:+.1%}"))
    else:
        rows.append(("plan", "no plan in this run"))
    held = run.summary.get("optimizer_state_bytes")
    rows += [
        ("optimizer's states, first rank", words.gib(held)),
        ("and as expected at most", words.gib(run.of_record("optimizer_state_bytes_expected"))),
    ]
    return [*blocks, Table((), rows, source=f"{SUMMARY}; {RECORD}")]


def _median(values: Sequence[float | None]) -> float | None:
    """Of those that are there: the first steps, which take longer, do not move it."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


def _steps(run: RunFiles) -> list[Block]:
    rate = plots.plain_figure(run, "learning_rate", "learning rate", "Learning rate")
    blocks = _drawn(rate, f"{METRICS}: learning_rate")
    norm = plots.step_figure(run, "grad_norm", "gradient norm", "Gradient norm", 3, log_y=True)
    blocks += _drawn(norm, f"{METRICS}: grad_norm, before clipping")
    scale = plots.plain_figure(run, "loss_scale", "loss scale", "Loss scale")
    blocks += _drawn(scale, f"{METRICS}: loss_scale")
    if run.skipped:
        rows = [(str(step), reason) for step, reason in run.skipped[:SKIPPED_SHOWN]]
        more = len(run.skipped) - SKIPPED_SHOWN
        if more > 0:
            rows.append(("…", f"and {more:,} more"))
        title = f"{len(run.skipped):,} steps without an update"
        blocks.append(Table(("step", "why"), rows, title=title, source=f"{METRICS}: skip_reason"))
    elif run.steps["step"]:
        blocks.append(
            Text("Every step was an update: none was skipped.", source=f"{METRICS}: skipped")
        )
    return blocks


def _norms(run: RunFiles) -> list[Block]:
    source = f"{NORMS}: norms at its first and last step"
    return [block for figure in plots.norm_figures(run) for block in _drawn(figure, source)]
