"""What became of the rows of a data set, in figures: of bounded size, and added up part by part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llama.data.examples import ExampleSet
from llama.data.findings import Findings, Tallied
from llama.data.types import Example
from llama.tokenizer.base import Tokenizer


@dataclass
class Tally:
    """Figures of the rows so far. Lengths are in tokens."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    supervised: int = 0
    longest: int = 0
    largest_id: int = -1
    duplicates: int = 0
    """Examples whose ids an earlier one has too; known once all are there."""
    ends: bool = False
    """Whether any example has a label that ends an answer."""
    doubled: Tallied = field(default_factory=Tallied)
    """Examples that begin with BOS twice."""
    skipped: dict[str, Tallied] = field(default_factory=dict)
    """By reason, the rows that gave no example."""
    truncated: Tallied = field(default_factory=Tallied)
    """Rows cut off at the sequence length, skipped ones included."""
    dropped: Tallied = field(default_factory=Tallied)
    """Rows left out for their length."""
    dropped_texts: int = 0
    """Those of them that are plain texts."""
    lengths: dict[int, int] = field(default_factory=dict)
    """How many rows that were left out would fit each power of two that is as long or longer."""
    longest_dropped: int = 0
    answers: int = 0
    """Where rows are cut: stretches of supervised tokens, before anything was cut off."""
    tokens_lost: int = 0
    """Supervised tokens cut off."""
    cut_unseen: bool = False
    """Whether a row was so long that its end was not even tokenised."""
    findings: Findings = field(default_factory=Findings)

    def merge(self, later: Tally) -> None:
        """Take in the figures of the rows that follow."""
        for name in (
            *("rows", "examples", "tokens", "supervised", "duplicates", "answers", "tokens_lost"),
            "dropped_texts",
        ):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in ("longest", "largest_id", "longest_dropped", "ends", "cut_unseen"):
            setattr(self, name, max(getattr(self, name), getattr(later, name)))
        for name in ("doubled", "truncated", "dropped", "findings"):
            getattr(self, name).merge(getattr(later, name))
        for reason, tallied in later.skipped.items():
            self.skipped.setdefault(reason, Tallied()).merge(tallied)
        for power, count in later.lengths.items():
            self.lengths[power] = self.lengths.get(power, 0) + count

    def as_json(self) -> dict[str, Any]:
        """For a file, from which `from_json` makes the same again."""
        written = {
            name: vars(value) if isinstance(value, Tallied) else value
            for name, value in vars(self).items()
        }
        written["skipped"] = {reason: vars(rows) for reason, rows in self.skipped.items()}
        written["lengths"] = list(self.lengths.items())
        return written | {"findings": self.findings.as_json()}

    @staticmethod
    def from_json(written: dict[str, Any]) -> Tally:
        read = dict(written)
        for name in ("doubled", "truncated", "dropped"):
            read[name] = Tallied(**read[name])
        read["skipped"] = {reason: Tallied(**rows) for reason, rows in read["skipped"].items()}
        read["lengths"] = dict(read["lengths"])
        read["findings"] = Findings.from_json(read["findings"])
        return Tally(**read)


def tally_of(built: ExampleSet, tokenizer: Tokenizer) -> Tally:
    """The figures of `built`. Duplicates are left at 0: they are found over all rows at once."""
    examples = built.examples
    tally = Tally(
        rows=built.rows,
        examples=len(examples),
        tokens=sum(len(example.input_ids) for example in examples),
        supervised=sum(example.supervised for example in examples),
        longest=max((len(example.input_ids) for example in examples), default=0),
        largest_id=max((max(example.input_ids) for example in examples), default=-1),
        ends=any(tokenizer.stop_ids.intersection(example.labels[1:]) for example in examples),
        answers=built.answers,
        tokens_lost=built.tokens_lost,
        cut_unseen=built.cut_unseen,
        findings=built.findings,
    )
    for example in examples:
        if _doubled_bos(example, tokenizer):
            tally.doubled.add(example.row)
    for number, reason in built.skipped:
        tally.skipped.setdefault(reason, Tallied()).add(number)
    for number in built.truncated:
        tally.truncated.add(number)
    for row in built.dropped:
        tally.dropped.add(row.number)
        tally.dropped_texts += row.is_text
        tally.longest_dropped = max(tally.longest_dropped, row.length)
        power = 1 << (row.length - 1).bit_length()
        tally.lengths[power] = tally.lengths.get(power, 0) + 1
    return tally


def _doubled_bos(example: Example, tokenizer: Tokenizer) -> bool:
    bos = tokenizer.bos_id
    return bos is not None and example.input_ids[:2] == [bos, bos]
