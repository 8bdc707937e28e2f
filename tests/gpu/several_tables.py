"""The tables of `several_gpus`: a row for each sub-run, or for each of its cases."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llama.commands.benchmark.sub_run import gib, markdown
from tests.gpu.sub_runs import SubRun

VERIFY_HEAD = [
    *("topology", "precision", "loss", "gradient norm", "updated adapter", "distance moved"),
    *("copies equal", "verdict"),
]
SPEED_HEAD = [
    *("work", "placement", "GPUs", "tokens/s (min - max)", "a GPU", "share", "to reach"),
    *("TFLOP/s a GPU, 4N",),
    *("peak GiB a GPU", "loading peak GiB", "first loss"),
]
KILLS_HEAD = [
    *("placement", "run", "killed after step", "rank", "resumed from", "steps", "loss", "adapter"),
    *("bit for bit", "verdict"),
]
COMMUNICATION_HEAD = [
    *("placement", "ZeRO", "overlap_comm", "tokens/s", "ms a step", "collectives a step"),
    *("ms in collectives", "ms lost to them", "lost", "overlapping gave"),
]
BESIDE_WHOLE = ("DP, base sharded", "ZeRO-3")
"""Placements of data-parallel ranks that do not each hold the base."""


@dataclass
class Measure(SubRun):
    """One start of some processes."""

    part: str
    name: str
    gpus: int
    limit: float
    """Seconds after which it is given up."""
    skip: bool = False
    """It would not fit."""
    work: str = ""
    """Which step is timed, where one is."""
    reach: float | None = None
    """The share that it is to reach of what it is put beside."""


def tables(runs: list[Measure]) -> str:
    """Of all parts that were asked for, in their order."""
    parts = dict.fromkeys(run.part for run in runs)
    return "\n\n".join(f"### {part}\n\n{_table(part, runs)}" for part in parts)


def _table(part: str, runs: list[Measure]) -> str:
    head, rows = TABLES[part]
    own = [run for run in runs if run.part == part]
    found: list[list[str]] = []
    for run in own:
        if run.result is None:
            found.append([*([run.work] if run.work else []), run.name, str(run.error)])
        else:
            found += rows(run, own)
    return markdown(head, found)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def verify_rows(run: Measure, _: list[Measure]) -> list[list[str]]:
    assert run.result is not None
    if "cases" in run.result:
        return [_topologies_row(run.name, run.result)]
    found = []
    for comparison in run.result["runs"]:
        rows = {row["what"]: row for row in comparison["rows"]}
        precision = comparison["run"].split(", ")[-2]
        names = ("loss", "gradient norm", "updated adapter", "distance moved")
        deviations = [_small(rows[name]["deviation"]) if name in rows else "-" for name in names]
        same = "yes" if rows["replicas, by hash"]["agrees"] else "NO"
        verdict = "agrees" if comparison["agrees"] else "DIFFERS"
        found.append([run.name, precision, *deviations, same, verdict])
    return found


def _topologies_row(name: str, result: dict[str, Any]) -> list[str]:
    """The worst of all stages and accumulations."""
    cases, limits = result["cases"], result["limits"]
    worst = {what: max(case[what] for case in cases) for what in limits}
    same = all(case["replicas_equal"] for case in cases)
    agrees = same and all(worst[what] <= limit for what, limit in limits.items())
    shown = [_small(worst[what]) for what in ("loss", "grad_norm", "adapter", "distance")]
    verdict = f"{len(cases)} cases {'agree' if agrees else 'DIFFER'}"
    return [name, "fp32", *shown, "yes" if same else "NO", verdict]


def beside(run: Measure, runs: list[Measure]) -> float | None:
    """Tokens a second of what `run` is put beside: where data-parallel ranks share a base, as many
    that each hold it; else one GPU, times the number of GPUs. None where that was not timed."""
    count = run.gpus if run.name in BESIDE_WHOLE else 1
    for other in runs:
        of = (other.work, other.name, other.gpus)
        if other is not run and other.result and of == (run.work, "DP", count):
            return other.result["tokens_per_second"]["median"] * run.gpus / count
    return None


def speed_rows(run: Measure, runs: list[Measure]) -> list[list[str]]:
    found = run.result
    assert found is not None
    rate, base = found["tokens_per_second"], beside(run, runs)
    shown = f"{rate['median']:,.0f} ({rate['min']:,.0f} - {rate['max']:,.0f})"
    share = f"{rate['median'] / base:.1%}" if base else "-"
    reach = "-" if run.reach is None else f"{run.reach:.0%}"
    each = [f"{rate['median'] / run.gpus:,.0f}", share, reach, f"{found['tflops'] / run.gpus:.1f}"]
    peaks = [gib(found[f"{name}_memory_bytes"]) for name in ("peak", "loading_peak")]
    head = [run.work, run.name, str(run.gpus), shown]
    return [[*head, *each, *peaks, f"{found['loss_first']:.4f}"]]


def kills_rows(run: Measure, _: list[Measure]) -> list[list[str]]:
    assert run.result is not None
    if run.result["error"]:
        return [[run.name, "uninterrupted", run.result["error"]]]
    rows = []
    for found in run.result["runs"]:
        step, rank = found["killed"] or ("-", "-")
        if found["error"]:
            rows.append([run.name, found["run"], str(step), str(rank), found["error"]])
            continue
        resumed = ", ".join(map(str, found["resumed_from"])) or "-"
        apart = [_small(found.get(f"{name}_deviation")) for name in ("loss", "adapter")]
        equal = "yes" if found.get("bit_for_bit") else "no"
        verdict = "agrees" if found.get("agrees") else "DIFFERS"
        shown = [str(step), str(rank), resumed, str(found["steps"]), *apart, equal, verdict]
        rows.append([run.name, found["run"], *shown])
    return rows


def communication_rows(run: Measure, _: list[Measure]) -> list[list[str]]:
    assert run.result is not None
    cases, rows = run.result["cases"], []
    without: dict[int, float] = {}
    """ZeRO stage to tokens/s with nothing overlapped."""
    for case in cases:
        zero = case["deepspeed"]["zero_optimization"]
        rate, overlap = case["tokens_per_second"]["median"], zero.get("overlap_comm")
        if overlap is False:
            without[zero["stage"]] = rate
        gave = f"{rate / without[zero['stage']]:.3f}" if overlap else "-"
        step = 1000 * case["seconds_per_step"]["median"]
        total, lost = _mean(case, "communication"), _mean(case, "exposed")
        share = "-" if lost is None else f"{lost / step:.1%}"
        parts = ["-" if value is None else f"{value:.1f}" for value in (total, lost)]
        shown = [f"{rate:,.0f}", f"{step:.1f}", f"{_mean(case, 'collectives'):.0f}", *parts]
        switch = "-" if overlap is None else str(overlap).lower()
        placement = f"{run.name} {run.gpus}"
        rows.append([placement, str(zero["stage"]), switch, *shown, share, gave])
    return rows


def _mean(case: dict[str, Any], name: str) -> float | None:
    """Over the ranks."""
    values = [of_rank[name] for of_rank in case["milliseconds_per_step"]]
    return None if None in values else statistics.mean(values)


Rows = Callable[[Measure, list[Measure]], list[list[str]]]
TABLES: dict[str, tuple[list[str], Rows]] = {
    "verify": (VERIFY_HEAD, verify_rows),
    "speed": (SPEED_HEAD, speed_rows),
    "large": (SPEED_HEAD, speed_rows),
    "long": (SPEED_HEAD, speed_rows),
    "kills": (KILLS_HEAD, kills_rows),
    "communication": (COMMUNICATION_HEAD, communication_rows),
}
