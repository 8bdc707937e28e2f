"""Looks at the examples before training: a report for the log, and refusal of what cannot train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llama.data.examples import Overlong
from llama.data.findings import CUT, GONE, Tallied
from llama.data.source import Source
from llama.data.tally import Tally
from llama.errors import UserError


@dataclass(frozen=True)
class LintReport:
    """What a data set gives to train on. Lengths are in tokens."""

    source: Source
    rows: int
    examples: int
    tokens: int
    supervised_tokens: int
    longest: int
    truncated: Tallied
    """Rows cut off at the sequence length."""
    dropped: str | None
    """What is said of the rows left out for their length."""
    skipped: Mapping[str, Tallied]
    """By reason, the rows left out."""
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
    held_out: str | None = None
    """What is said of the examples that are in the rows and not in these figures."""

    @property
    def supervised_share(self) -> float:
        return self.supervised_tokens / self.tokens

    @property
    def is_plain(self) -> bool:
        """Whether every row was taken whole, and there is nothing else to tell."""
        return not (self.truncated.count or self.dropped or self.skipped or self.findings)

    def text(self) -> str:
        """The report as one paragraph."""
        parts = [
            f"{self.rows:,} rows gave {self.examples:,} examples of {self.tokens:,} tokens",
            f"{self.supervised_tokens:,} of them supervised ({self.supervised_share:.1%})",
            f"the longest has {self.longest:,}",
        ]
        numbers = self.source.numbers
        if self.held_out:
            parts.append(self.held_out)
        if self.truncated.count:
            parts.append(f"{self.truncated.count:,} truncated ({numbers(self.truncated.rows)})")
        if self.tokens_lost:
            more = "at least " if self.cut_unseen else ""
            parts.append(f"{more}{self.tokens_lost:,} supervised tokens are lost with that")
        if self.dropped:
            parts.append(self.dropped)
        for reason, rows in self.skipped.items():
            parts.append(f"{rows.count:,} skipped, {reason} ({numbers(rows.rows)})")
        parts += self.findings
        if self.most_ends_lost:
            parts.append("most answers lost their end: the model may not learn to stop")
        if self.duplicates:
            parts.append(f"{self.duplicates:,} are duplicates")
        return "; ".join(parts) + "."


def lint(tally: Tally, source: Source, seq_len: int, overlong: Overlong) -> LintReport:
    """Report on the rows of `source`, made into examples of at most `seq_len` tokens. Raises
    UserError, all problems at once, where training on them would be useless: nothing supervised, no
    answer that ends, or BOS doubled."""
    if not tally.examples:
        raise UserError(f"{source.name}: {_nothing_to_train(tally, source, seq_len)}")
    problems: list[str] = []
    if not tally.ends:
        problems.append(f"{source.name}: {_no_end(tally, seq_len, overlong)}")
    if tally.doubled.count:
        problems.append(
            f"{source.name}: {tally.doubled.count:,} examples begin with BOS twice "
            f"({source.numbers(tally.doubled.rows)}); take `bos_token` out of the template"
        )
    if problems:
        raise UserError(problems)
    ends_lost = tally.findings.count(CUT) + tally.findings.count(GONE)
    return LintReport(
        source=source,
        rows=tally.rows,
        examples=tally.examples,
        tokens=tally.tokens,
        supervised_tokens=tally.supervised,
        longest=tally.longest,
        truncated=tally.truncated,
        dropped=_dropped(tally, source, seq_len) if tally.dropped.count else None,
        skipped=tally.skipped,
        duplicates=tally.duplicates,
        tokens_lost=tally.tokens_lost,
        cut_unseen=tally.cut_unseen,
        most_ends_lost=2 * ends_lost > tally.answers,
        findings=tuple(tally.findings.lines(source)),
    )


def _dropped(tally: Tally, source: Source, seq_len: int) -> str:
    """Of the rows that were left out: how many, which, and what would keep them."""
    dropped = tally.dropped
    verb = "is" if dropped.count == 1 else "are"
    keep = "--overlong cut keeps the beginning of each"
    if tally.dropped_texts:
        keep += ", --overlong split cuts plain texts into pieces"
    return (
        f"{dropped.count:,} longer than --seq_len {seq_len} {verb} left out "
        f"({source.numbers(dropped.rows)}): {keep}"
    )


def _nothing_to_train(tally: Tally, source: Source, seq_len: int) -> str:
    if not tally.rows:
        return "holds no rows"
    if tally.dropped.count:
        return _all_too_long(tally, seq_len)
    reason, skipped = next(iter(tally.skipped.items()))
    return (
        f"none of its {tally.rows:,} rows has a token to learn "
        f"({source.numbers(skipped.rows[:1])}: {reason}); raise --seq_len, now {seq_len}, or "
        "mend the data"
    )


def _all_too_long(tally: Tally, seq_len: int) -> str:
    """The refusal of a set of which nothing is left, with what a longer row would keep."""
    fitting, shares = 0, []
    for power, count in sorted(tally.lengths.items()):
        fitting += count
        shares.append((power, fitting / tally.rows))
    power, share = next((at for at in shares if at[1] >= 0.9), shares[-1])
    ways = f"--seq_len {power} would keep {share:.0%} of them, --overlong cut the beginning of each"
    if tally.dropped_texts:
        ways += ", --overlong split keeps plain texts whole, in pieces"
    others = tally.rows - tally.dropped.count
    rest = f" and the other {others:,} give nothing to learn" if others else ""
    return (
        f"{tally.dropped.count:,} of its {tally.rows:,} rows are longer than --seq_len {seq_len} "
        f"(the longest has {tally.longest_dropped:,} tokens){rest}, so nothing is left: {ways}"
    )


def _no_end(tally: Tally, seq_len: int, overlong: Overlong) -> str:
    if tally.truncated.count == tally.rows:
        return (
            f"every row is longer than --seq_len {seq_len} and --overlong {overlong} takes its "
            "end, so no answer's end is ever seen and the model would not learn to stop; raise "
            "--seq_len"
        )
    return (
        "no example has an EOS or end-of-turn token among its labels, so the model would not learn "
        "to stop; use a template that ends the answer with the tokenizer's EOS"
    )
