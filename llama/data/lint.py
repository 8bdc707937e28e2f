"""Looks at the examples before training: a report for the log, and refusal of what cannot train."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llama.data.examples import ExampleSet, numbers
from llama.data.types import Example
from llama.errors import UserError
from llama.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class LintReport:
    """What a data file gives to train on. Lengths are in tokens."""

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

    @property
    def supervised_share(self) -> float:
        return self.supervised_tokens / self.tokens

    def text(self) -> str:
        """The report as one paragraph."""
        parts = [
            f"{self.rows:,} rows gave {self.examples:,} examples of {self.tokens:,} tokens",
            f"{self.supervised_tokens:,} of them supervised ({self.supervised_share:.1%})",
            f"the longest has {self.longest:,}",
        ]
        if self.truncated:
            parts.append(f"{len(self.truncated):,} truncated ({numbers(self.truncated)})")
        for reason, count in Counter(reason for _, reason in self.skipped).items():
            rows = [number for number, why in self.skipped if why == reason]
            parts.append(f"{count:,} skipped, {reason} ({numbers(rows)})")
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
        problems.append(f"{built.path}: {_no_end(built)}")
    doubled = [example.row for example in examples if _doubled_bos(example, tokenizer)]
    if doubled:
        problems.append(
            f"{built.path}: {len(doubled):,} examples begin with BOS twice ({numbers(doubled)}); "
            "take `bos_token` out of the template"
        )
    if problems:
        raise UserError(problems)
    return LintReport(
        rows=built.rows,
        examples=len(examples),
        tokens=sum(len(example.input_ids) for example in examples),
        supervised_tokens=sum(example.supervised for example in examples),
        longest=max(len(example.input_ids) for example in examples),
        truncated=tuple(built.truncated),
        skipped=tuple(built.skipped),
        duplicates=len(examples) - len({tuple(example.input_ids) for example in examples}),
    )


def _nothing_to_train(built: ExampleSet) -> str:
    if not built.rows:
        return f"{built.path}: holds no rows"
    number, reason = built.skipped[0]
    return (
        f"{built.path}: none of its {built.rows:,} rows has a token to learn "
        f"(row {number}: {reason}); raise --seq_len, now {built.seq_len}, or mend the data"
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
