"""What `verify` compares and what it says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from llama.engine.state import Tensors
from llama.parallel.mesh import Mesh
from llama.settings.deepspeed_json import Resolved


@dataclass(frozen=True)
class Outcome:
    """What a few steps gave. `adapter` is all that trains, whole: name to float32 tensor, on the
    CPU."""

    losses: list[float]
    grad_norms: list[float | None]
    adapter: Tensors
    initial: Tensors = field(default_factory=dict)
    """The adapter before the first step."""
    skipped: int = 0
    replica_problems: list[str] = field(default_factory=list)
    optimizer_bytes: list[int] = field(default_factory=list)
    """Of each rank."""
    trained: str = "adapter"
    """What trains, in a word."""
    base_sharers: int = 1
    """How many data-parallel ranks held one base together."""
    rounds_input: bool = False
    """Whether the products with frozen weights round what they are given."""
    nudged: Outcome | None = None
    """Of the reference: what the same run gave with every weight off by a few roundings of a
    float32; None where no limit follows from it."""


@dataclass(frozen=True)
class Tolerance:
    """The largest deviations that pass: of a loss and of a gradient's norm relative to the
    reference's own; of the adapter, as one vector, relative to how far training has moved it; of
    the distance that this vector has moved relative to the reference's."""

    loss: float
    grad_norm: float
    adapter: float
    distance: float


TOLERANCES = {
    "fp32": Tolerance(1e-5, 1e-5, 1e-3, 1e-2),
    "bf16": Tolerance(2e-2, 5e-2, 1.0, 0.3),
    "fp16": Tolerance(5e-3, 2e-2, 1.0, 0.3),
}
"""In float32 only the order of sums differs. Of the adapter more is allowed, since Adam divides a
gradient by its own size: an element whose gradient is all rounding moves as far as any. How many
such elements there are is a matter of the model and its rows, so it is measured: see `_limits`. In
half precision much of a wide model's first gradients is rounding: there loss and norm are the
proof, and the adapter may not be farther off than it has moved. So it is, in float32 too, where
frozen weights are multiplied in eight bits. An adapter that hardly moved is no farther off than
that: the distance is the proof that both moved alike, for which way an element of rounding steps
is a coin toss, but not how far."""

MARGIN = 10.0
"""How many times what rounding alone does to the reference a run in float32 may deviate."""
WIDEST = Tolerance(1e-4, 1e-3, 1e-1, TOLERANCES["fp32"].distance)
"""No measured sensitivity excuses more than this: known mistakes deviate by more."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    asked: str
    alone: str
    deviation: float | None
    limit: float | None
    agrees: bool
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The rows of one run as asked against one process alone."""

    title: str
    rows: list[Row]
    trained: str

    @property
    def agrees(self) -> bool:
        return all(row.agrees for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        rows = [vars(row) for row in self.rows]
        return {"run": self.title, "agrees": self.agrees, "rows": rows}


def compare(
    outcome: Outcome, reference: Outcome | None, resolved: Resolved, mesh: Mesh
) -> Comparison:
    """On the first rank, which has the reference; the others wait for its verdict."""
    found: list[Any] = [None]
    if reference is not None:
        rows = _rows(outcome, reference, _limits(outcome, reference, resolved.precision))
        found = [Comparison(_title(outcome, resolved, mesh), rows, outcome.trained)]
    torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


def _limits(outcome: Outcome, reference: Outcome, precision: str) -> Tolerance:
    """In float32 the larger of the table's limit and MARGIN times the nudged reference's deviation:
    a model whose steps magnify a rounding does so on one process as on several."""
    if outcome.rounds_input:
        return TOLERANCES["bf16"]
    limit = TOLERANCES[precision]
    if precision != "fp32" or reference.nudged is None:
        return limit
    loss, norm, adapter = (
        min(max(at_least, MARGIN * (row.deviation or 0.0)), widest)
        for row, at_least, widest in zip(
            _deviations(reference.nudged, reference, limit)[:3],
            (limit.loss, limit.grad_norm, limit.adapter),
            (WIDEST.loss, WIDEST.grad_norm, WIDEST.adapter),
            strict=True,
        )
    )
    return Tolerance(loss, norm, adapter, limit.distance)


def _title(outcome: Outcome, resolved: Resolved, mesh: Mesh) -> str:
    n = outcome.base_sharers
    base = f", base sharded over {n}" if n > 1 else ""
    return (
        f"{mesh.title(' ')}, "
        f"ZeRO-{resolved.zero_stage}{base}, accumulation {resolved.accumulation}, "
        f"{resolved.precision}, against one process in float32"
    )


def _rows(outcome: Outcome, reference: Outcome, limit: Tolerance) -> list[Row]:
    rows = _deviations(outcome, reference, limit)
    problems = outcome.replica_problems
    same = "equal" if not problems else f"{len(problems)} differ"
    rows.append(
        Row("replicas, by hash", same, "equal", None, None, not problems, "; ".join(problems[:3]))
    )
    if outcome.skipped:
        skipped = f"{outcome.skipped} skipped"
        rows.append(Row("steps", skipped, "none skipped", None, None, False, "not finite"))
    return rows


def _deviations(outcome: Outcome, reference: Outcome, limit: Tolerance) -> list[Row]:
    return [
        _series("loss", outcome.losses, reference.losses, limit.loss),
        _series("gradient norm", outcome.grad_norms, reference.grad_norms, limit.grad_norm),
        _adapters(outcome, reference, limit.adapter),
        _distance(outcome, reference, limit.distance),
    ]


def _series(
    what: str, asked: list[float | None] | list[float], alone: list[Any], limit: float
) -> Row:
    """The largest deviation over the steps; the last step's values are shown."""
    pairs = [
        (math.nan if a is None else a, math.nan if b is None else b)
        for a, b in zip(asked, alone, strict=True)
    ]
    deviations = [abs(a - b) / max(abs(b), 1e-30) for a, b in pairs]
    worst = max(range(len(pairs)), key=lambda i: _order(deviations[i]))
    agrees = deviations[worst] <= limit  # false for NaN
    note = "" if agrees else f"step {worst + 1} of {len(pairs)}"
    a, b = pairs[worst if not agrees else -1]
    return Row(what, f"{a:.6f}", f"{b:.6f}", deviations[worst], limit, agrees, note)


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _adapters(outcome: Outcome, reference: Outcome, limit: float) -> Row:
    """The distance between the two adapters over the distance that the reference has gone. The
    tensor with the largest share of it is named where it is too far."""
    asked, alone = outcome.adapter, reference.adapter
    if asked.keys() != alone.keys():
        return Row(outcome.trained, "other tensors", "", None, None, False, "names differ")
    apart = {name: asked[name] - value for name, value in alone.items()}
    deviation = _norm(apart) / max(_moved(reference), 1e-30)
    agrees = deviation <= limit  # false for NaN
    furthest = max(apart, key=lambda name: _order(float(apart[name].norm())))
    note = "" if agrees else f"furthest: {furthest}"
    shown = (f"{_norm(asked):.6f}", f"{_norm(alone):.6f}")
    return Row(f"updated {outcome.trained}", *shown, deviation, limit, agrees, note)


def _distance(outcome: Outcome, reference: Outcome, limit: float) -> Row:
    """How far each of the two has moved, from where it began itself: half precision rounds a
    beginning, which a low rate may not make up for."""
    asked, alone = _moved(outcome), _moved(reference)
    deviation = abs(asked - alone) / max(alone, 1e-30)
    agrees = deviation <= limit  # false for NaN
    note = "" if agrees else f"{asked / max(alone, 1e-30):.2g} times as far"
    return Row("distance moved", f"{asked:.6g}", f"{alone:.6g}", deviation, limit, agrees, note)


def _moved(outcome: Outcome) -> float:
    began = outcome.initial
    return _norm({name: value - began[name] for name, value in outcome.adapter.items()})


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def table(comparisons: list[Comparison]) -> str:
    """For a reader."""
    lines = []
    for comparison in comparisons:
        lines += [comparison.title, _line("", "as asked", "alone", "deviation", "limit", "")]
        for row in comparison.rows:
            deviation = "" if row.deviation is None else f"{row.deviation:.1e}"
            limit = "" if row.limit is None else f"{row.limit:.0e}"
            verdict = "agrees" if row.agrees else f"DIFFERS {row.note}"
            lines.append(_line(row.what, row.asked, row.alone, deviation, limit, verdict))
        lines.append("")
    agree = all(comparison.agrees for comparison in comparisons)
    trained = comparisons[0].trained
    lines.append(
        f"verdict: this topology trains the same {trained} as one process"
        if agree
        else f"verdict: this topology DOES NOT train the same {trained} as one process: do not "
        "trust a run on it"
    )
    return "\n".join(lines)


def _line(what: str, *cells: str) -> str:
    asked, alone, deviation, limit, verdict = cells
    return f"  {what:18} {asked:>13} {alone:>13} {deviation:>10} {limit:>7}  {verdict}".rstrip()
