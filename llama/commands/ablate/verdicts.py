"""What the figures say of what is commonly claimed: does each technique save and cost what it is
said to?

Each claim is judged by pairs of combinations that differ in the technique alone: the ratio of the
two, as the geometric mean over all such pairs, and for what was learnt the mean difference of the
losses on held-out rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama.commands.ablate.grid import CHECKPOINTING, Case
from llama.commands.ablate.measure import Result
from llama.commands.ablate.parts import ACTIVATIONS, GRADIENTS, OPTIMIZER, WEIGHTS

CHANGED = 0.05
"""A ratio that is further than this from 1 is a saving or a cost."""
LEARNT = 0.005
"""Losses that differ by more than this share of themselves are better or worse."""

Pair = tuple[Result, Result]
"""Without the technique, and with it."""


@dataclass(frozen=True)
class Verdict:
    """One claim and what was found."""

    technique: str
    subject: str
    claim: str
    """In the words of those who make it."""
    confirmed: bool | None
    """None where nothing was measured that could say."""
    figure: str

    @property
    def mark(self) -> str:
        return {True: "confirmed", False: "not confirmed", None: "not measured"}[self.confirmed]


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """Of low precision, accumulation, checkpointing and LoRA: memory, time, what is learnt."""
    by_case = {result.case: result for result in results if result.peak is not None}
    return [
        verdict
        for technique, partner, judged in TECHNIQUES
        for verdict in judged(technique, _pairs(by_case, partner))
    ]


def _pairs(by_case: dict[Case, Result], partner: Callable[[Case], Case | None]) -> list[Pair]:
    found = []
    for case, result in by_case.items():
        without = partner(case)
        if without is not None and without in by_case:
            found.append((by_case[without], result))
    return found


def _without_half(case: Case) -> Case | None:
    return None if case.precision == "float32" else case.but(precision="float32")


def _without_accumulation(case: Case) -> Case | None:
    return None if case.accumulation == 1 else case.but(accumulation=1)


def _without_checkpointing(case: Case) -> Case | None:
    return None if case.checkpointing == CHECKPOINTING[0] else case.but(checkpointing="none")


def _without_lora(case: Case) -> Case | None:
    return None if case.method == "full" else case.but(method="full")


def _low_precision(name: str, pairs: list[Pair]) -> list[Verdict]:
    return [
        _saves(name, "Reduce activation and gradient", pairs, (ACTIVATIONS, GRADIENTS),
               beside=(WEIGHTS, OPTIMIZER)),
        _time(name, "Reduce hardware cost", pairs, faster=True),
        _learns(name, "Decrease accuracy", pairs, lambda worse: worse > LEARNT),
    ]  # fmt: skip


def _accumulation(name: str, pairs: list[Pair]) -> list[Verdict]:
    return [
        _saves(name, "Logically increase batch size without explicitly increasing it", pairs,
               (ACTIVATIONS,), beside=(GRADIENTS,)),
        _time(name, "Increase activation calculations", pairs, faster=False),
        _learns(name, "Might indirectly affect accuracy", pairs, lambda worse: abs(worse) > LEARNT),
    ]  # fmt: skip


def _checkpointing(name: str, pairs: list[Pair]) -> list[Verdict]:
    return [
        _saves(name, "Reduce activation", pairs, (ACTIVATIONS,), beside=(GRADIENTS,)),
        _time(name, "Increase activation calculations", pairs, faster=False),
        _learns(name, "No impact on accuracy", pairs, lambda worse: abs(worse) <= LEARNT),
    ]


def _lora(name: str, pairs: list[Pair]) -> list[Verdict]:
    return [
        _saves(name, "Reduce model gradient and optimizer state", pairs, (GRADIENTS, OPTIMIZER),
               beside=(ACTIVATIONS,)),
        _time(name, "Only calculate gradient for LoRA parameters", pairs, faster=True),
        _learns(name, "Decrease accuracy compared to training on all parameters", pairs,
                lambda worse: worse > LEARNT),
    ]  # fmt: skip


TECHNIQUES: tuple[
    tuple[
        str,
        Callable[[Case], Case | None],
        Callable[[str, list[Pair]], list[Verdict]],
    ],
    ...,
] = (
    ("Low precision", _without_half, _low_precision),
    ("Gradient accumulation", _without_accumulation, _accumulation),
    ("Gradient checkpointing", _without_checkpointing, _checkpointing),
    ("LoRA", _without_lora, _lora),
)
"""Name, the combination without it, what is claimed of it: the table of the course report that this
project started from, in its words."""


def _saves(
    name: str, claim: str, pairs: list[Pair], parts: Sequence[str], beside: Sequence[str]
) -> Verdict:
    """Confirmed where each of `parts` is less with the technique."""
    ratios = {part: ratio for part in (*parts, *beside) if (ratio := _of_part(pairs, part))}
    judged = [ratios[part] for part in parts if part in ratios]
    confirmed = all(ratio < 1 - CHANGED for ratio in judged) if judged else None
    said = ", ".join(f"{part} x {ratio:.2f}" for part, ratio in ratios.items())
    peak = _mean_ratio([(a.peak, b.peak) for a, b in pairs])
    return Verdict(name, "memory", claim, confirmed, f"{said}; peak x {peak:.2f}" if peak else said)


def _of_part(pairs: list[Pair], part: str) -> float | None:
    return _mean_ratio([(a.most.get(part), b.most.get(part)) for a, b in pairs])


def _time(name: str, claim: str, pairs: list[Pair], faster: bool) -> Verdict:
    ratio = _mean_ratio([(a.seconds, b.seconds) for a, b in pairs])
    if ratio is None:
        return Verdict(name, "time of a step", claim, None, "")
    confirmed = ratio < 1 - CHANGED if faster else ratio > 1 + CHANGED
    return Verdict(name, "time of a step", claim, confirmed, f"x {ratio:.2f}")


def _learns(name: str, claim: str, pairs: list[Pair], holds: Callable[[float], bool]) -> Verdict:
    """`holds` is asked of how much higher the held-out loss is with the technique, as a share."""
    both = [(a.eval_loss, b.eval_loss) for a, b in pairs]
    known = [(a, b) for a, b in both if a is not None and b is not None]
    if not known:
        return Verdict(name, "held-out loss", claim, None, "")
    share = sum((b - a) / a for a, b in known) / len(known)
    worst = max((abs(b - a) / a for a, b in known), default=0.0)
    figure = f"{share:+.2%} in the mean, {worst:.2%} at most in a pair"
    return Verdict(name, "held-out loss", claim, holds(share), figure)


def _mean_ratio(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Of second to first, the geometric mean; None where no pair has both."""
    logs = [math.log(b / a) for a, b in pairs if a and b]
    return math.exp(sum(logs) / len(logs)) if logs else None
