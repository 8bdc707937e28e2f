"""Looks at the examples before training: a report for the log, and refusal of what cannot train."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llama.data.examples import ExampleSet
from llama.data.findings import CUT, GONE
from llama.data.source import Source
from llama.data.types import Example
from llama.errors import UserError
from llama.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class LintReport:
    """What a data set gives to train on. Lengths are in tokens."""

    source: Source
    rows: int
    examples: int
    tokens: int
    supervised_tokens: int
    longest: int
    truncated: tuple[int, ...]
    """Numbers of the rows cut off at the sequence length."""
    skipped: tuple[tuple[int, str], ...]
    """Row number and reason of each row left out."""
    duplicates: int
    """Examples whose ids an earlier one has too."""
    tokens_lost: int
    """Supervised tokens cut off at the sequence length."""
    cut_unseen: bool
    """Whether there were more of them, of rows too long to be tokenised whole."""
    most_ends_lost: bool
    """Whether more than half of the answers lost their end."""
    findings: tuple[str, ...]
    """What else became of rows, each with its count and the rows."""

    @property
    def supervised_share(self) -> float:
        return self.supervised_tokens / self.tokens

    @property
    def is_plain(self) -> bool:
        """Whether every row was taken whole, and there is nothing else to tell."""
        return not (self.truncated or self.skipped or self.findings)

    def text(self) -> str:
        """The report as one paragraph."""
        parts = [
            f"{self.rows:,} rows gave {self.examples:,} examples of {self.tokens:,} tokens",
            f"{self.supervised_tokens:,} of them supervised ({self.supervised_share:.1%})",
            f"the longest has {self.longest:,}",
        ]
        numbers = self.source.numbers
        if self.truncated:
            parts.append(f"{len(self.truncated):,} truncated ({numbers(self.truncated)})")
        if self.tokens_lost:
            more = "at least " if self.cut_unseen else ""
            parts.append(f"{more}{self.tokens_lost:,} supervised tokens are lost with that")
        for reason, count in Counter(reason for _, reason in self.skipped).items():
            rows = [number for number, why in self.skipped if why == reason]
            parts.append(f"{count:,} skipped, {reason} ({numbers(rows)})")
        parts += self.findings
        if self.most_ends_lost:
            parts.append("most answers lost their end: the model may not learn to stop")
        if self.duplicates:
            parts.append(f"{self.duplicates:,} are duplicates")
        return "; ".join(parts) + "."


def lint(built: ExampleSet, tokenizer: Tokenizer) -> LintReport:
    """Report on `built`. Raises UserError, all problems at once, where training on it would be
    useless: nothing supervised, no answer that ends, or BOS doubled."""
    examples = built.examples
    if not examples:
        raise UserError(_nothing_to_train(built))
    problems: list[str] = []
    if not any(tokenizer.stop_ids.intersection(example.labels[1:]) for example in examples):
        problems.append(f"{built.source.name}: {_no_end(built)}")
    doubled = [example.row for example in examples if _doubled_bos(example, tokenizer)]
    if doubled:
        problems.append(
            f"{built.source.name}: {len(doubled):,} examples begin with BOS twice "
            f"({built.source.numbers(doubled)}); take `bos_token` out of the template"
        )
    if problems:
        raise UserError(problems)
    ends_lost = built.findings.count(CUT) + built.findings.count(GONE)
    return LintReport(
        source=built.source,
        rows=built.rows,
        examples=len(examples),
        tokens=sum(len(example.input_ids) for example in examples),
        supervised_tokens=sum(example.supervised for example in examples),
        longest=max(len(example.input_ids) for example in examples),
        truncated=tuple(built.truncated),
        skipped=tuple(built.skipped),
        duplicates=len(examples) - len({tuple(example.input_ids) for example in examples}),
        tokens_lost=built.tokens_lost,
        cut_unseen=built.cut_unseen,
        most_ends_lost=2 * ends_lost > built.answers,
        findings=tuple(built.findings.lines(built.source)),
    )


def _nothing_to_train(built: ExampleSet) -> str:
    if not built.rows:
        return f"{built.source.name}: holds no rows"
    number, reason = built.skipped[0]
    return (
        f"{built.source.name}: none of its {built.rows:,} rows has a token to learn "
        f"({built.source.numbers([number])}: {reason}); raise --seq_len, now {built.seq_len}, or "
        "mend the data"
    )


def _no_end(built: ExampleSet) -> str:
    if len(built.truncated) == built.rows:
        return (
            f"every row is longer than --seq_len {built.seq_len}, so no answer's end is ever seen "
            "and the model would not learn to stop; raise --seq_len"
        )
    return (
        "no example has an EOS or end-of-turn token among its labels, so the model would not learn "
        "to stop; use a template that ends the answer with the tokenizer's EOS"
    )


def _doubled_bos(example: Example, tokenizer: Tokenizer) -> bool:
    bos = tokenizer.bos_id
    return bos is not None and example.input_ids[:2] == [bos, bos]
