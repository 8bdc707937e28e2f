"""The figures of a run, and of several over one another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llama.pages.figures import Bar, Figure, Series, lines, stacked_bars
from llama.pages.run.files import RunFiles, at, number
from llama.pages.run.words import GIB

_WINDOWS = 20
"""A smoothed line is a mean over this part of a run."""
_TENSOR = re.compile(r"layers\.(\d+)\.(?:.*\.)?(?!lora\.)(\w+)\.(?:lora\.)?(\w+)")
"""`layers.0.attention.wq.lora.a`: layer, target, factor."""


def window(run: RunFiles) -> int:
    """Steps that a smoothed value is the mean of; odd, so that the step itself is in the middle."""
    return len(run.steps["step"]) // _WINDOWS | 1


def smoothed(values: Sequence[float | None], size: int) -> list[float | None]:
    """The mean of each value and those around it, `size` in all, fewer at the ends; what is no
    number is not counted."""
    sums, counts = [0.0], [0]
    for value in values:
        sums.append(sums[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))
    means: list[float | None] = []
    for middle in range(len(values)):
        start, end = max(0, middle - size // 2), min(len(values), middle + size // 2 + 1)
        among = counts[end] - counts[start]
        means.append((sums[end] - sums[start]) / among if among else None)
    return means


def loss_figure(run: RunFiles) -> Figure | None:
    """Training and held-out loss by step, the lowest held-out one marked."""
    series = _training(run, "loss", 0, "training")
    if run.evaluations:
        series.append(_held_out(run, 1, "held-out"))
    return lines(series, "step", "loss", title="Loss") if _drawable(series) else None


def step_figure(
    run: RunFiles, field: str, y_label: str, title: str, colour: int = 0, log_y: bool = False
) -> Figure | None:
    """One field of the steps, as it is and smoothed."""
    series = _training(run, field, colour, y_label)
    return lines(series, "step", y_label, title=title, log_y=log_y) if _drawable(series) else None


def plain_figure(run: RunFiles, field: str, y_label: str, title: str) -> Figure | None:
    """One field of the steps, as it is."""
    series = [Series(y_label, _steps(run), run.steps[field])]
    return lines(series, "step", y_label, title=title) if _drawable(series) else None


def memory_figure(run: RunFiles) -> Figure | None:
    """What was held at most, and the plan's parts where there is a plan."""
    bars = []
    terms = at(run.record, "plan", "terms")
    if isinstance(terms, dict):
        sizes = {str(name): size for name, value in terms.items() if (size := number(value))}
        bars.append(Bar("planned", {name: max(0.0, size) / GIB for name, size in sizes.items()}))
    if (peak := peak_memory(run)) is not None:
        bars.append(Bar("measured", {"measured peak": peak / GIB}))
    return stacked_bars(bars, "GiB", title="Memory of the first rank") if bars else None


def peak_memory(run: RunFiles) -> float | None:
    """Bytes: of summary.json, or of the last step of a run without one."""
    found = number(run.summary.get("peak_memory_bytes"))
    column = run.steps["peak_memory_bytes"]
    return found if found is not None else max((v for v in column if v is not None), default=None)


def norm_figures(run: RunFiles) -> list[Figure]:
    """Of each factor the norms by layer, a line for each target; the first ones that were taken
    dashed, the last ones whole."""
    figures = []
    tables = [(step, _by_factor(norms)) for step, norms in run.norms]
    for factor in sorted({factor for _, table in tables for factor in table}):
        series = []
        for index, (step, table) in enumerate(tables):
            earlier = index + 1 < len(tables)
            for colour, (target, layers) in enumerate(sorted(table.get(factor, {}).items())):
                label = f"{target} at step {step}"
                x = sorted(layers)
                y = [layers[layer] for layer in x]
                series.append(Series(label, x, y, colour, dashed=earlier))
        if _drawable(series):
            title = f"{factor.upper() if len(factor) == 1 else factor}: norm by layer"
            figures.append(lines(series, "layer", "Frobenius norm", title=title))
    return figures


def compared_training(runs: Sequence[RunFiles]) -> Figure | None:
    """Smoothed training losses over one another."""
    series = [
        Series(run.label, _steps(run), smoothed(run.steps["loss"], window(run)), colour)
        for colour, run in enumerate(runs)
        if run.steps["step"]
    ]
    return lines(series, "step", "loss", title="Training loss") if _drawable(series) else None


def compared_held_out(runs: Sequence[RunFiles]) -> Figure | None:
    """Held-out losses over one another, the lowest of each marked."""
    series = [
        _held_out(run, colour, run.label) for colour, run in enumerate(runs) if run.evaluations
    ]
    return lines(series, "step", "loss", title="Held-out loss") if _drawable(series) else None


def compared_rates(runs: Sequence[RunFiles]) -> Figure | None:
    """Smoothed tokens per second over one another."""
    series = [
        Series(run.label, _steps(run), smoothed(run.steps["tokens_per_second"], window(run)), c)
        for c, run in enumerate(runs)
        if run.steps["step"]
    ]
    return lines(series, "step", "tokens/s", title="Throughput") if _drawable(series) else None


def _steps(run: RunFiles) -> list[float]:
    return [step or 0.0 for step in run.steps["step"]]


def _training(run: RunFiles, field: str, colour: int, label: str) -> list[Series]:
    steps, values, size = _steps(run), run.steps[field], window(run)
    if size == 1:
        return [Series(label, steps, values, colour)]
    mean = Series(f"{label}, mean of {size} steps", steps, smoothed(values, size), colour)
    return [Series(label, steps, values, colour, faint=True), mean]


def _held_out(run: RunFiles, colour: int, label: str) -> Series:
    best = run.best
    few = len(run.evaluations) <= 40
    return Series(
        label,
        [one.step for one in run.evaluations],
        [one.loss for one in run.evaluations],
        colour,
        points=few,
        best=None
        if best is None or best.loss is None
        else (best.step, best.loss, f"lowest: {best.loss:.4f}, step {best.step}"),
    )


def _by_factor(norms: Mapping[str, float | None]) -> dict[str, dict[str, dict[int, float | None]]]:
    """Factor to target to layer to norm."""
    table: dict[str, dict[str, dict[int, float | None]]] = {}
    for name, value in norms.items():
        if match := _TENSOR.fullmatch(name):
            layer, target, factor = match.groups()
            table.setdefault(factor, {}).setdefault(target, {})[int(layer)] = value
    return table


def _drawable(series: Sequence[Series]) -> bool:
    return any(value is not None for one in series for value in one.y)
