"""What `data` says on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama.commands.data.facts import (
    Duplicates,
    Piece,
    SetFacts,
    Whole,
    bins,
    pieces,
)
from llama.commands.terminal import (
    Cell,
    Terminal,
    middle_out,
    painted,
    paragraph,
    visible,
    wrapped,
)
from llama.data.rows import Row
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.marks import special_pattern

LEARNT, CONTROL, BOTH, HEADING = "32", "36", "1;32", "1"
"""SGR codes: green is what the model learns to write, cyan a control token of the prompt."""
LONGEST = 600
"""Characters of one stretch of text, beyond which its middle is left out."""
MOST = 40
"""Stretches of a row, beyond which those in its middle are left out."""


@dataclass(frozen=True)
class Shown:
    """A row to be shown, and why it was chosen."""

    row: Row
    why: str
    whole: Whole
    left_out: str
    """What keeps it out of training; empty if it is learnt from."""


def overview(sets: Sequence[SetFacts], template: str, terminal: Terminal) -> Iterator[str]:
    """The files, and what a run says of their rows."""
    for facts in sets:
        for file in facts.files:
            names = ", ".join(file.columns)
            yield paragraph(f"{file.path}: {file.rows:,} rows, {file.form} ({names})", terminal)
    yield paragraph(f"template: {template}", terminal)
    for facts in sets:
        yield ""
        yield heading("training" if facts.option == "data" else "held out", terminal)
        report, packed = facts.prepared.report, facts.prepared.packed
        yield "  " + paragraph(report.text(), terminal)
        rows = f"{len(packed):,} row{'s' if len(packed) > 1 else ''} of a batch"
        filled = f"{facts.filled:.1%} of their {facts.seq_len:,} positions hold a token"
        yield "  " + paragraph(f"packed into {rows}; {filled}", terminal)


def heading(text: str, terminal: Terminal) -> str:
    return painted([(character, HEADING) for character in text], terminal.colour)


def histogram(facts: SetFacts, terminal: Terminal) -> Iterator[str]:
    """How many rows have how many tokens, uncut, with --seq_len where it parts them."""
    lengths = facts.lengths
    found = bins(lengths, facts.seq_len)
    names = [f"{first:,}-{last:,}" for first, last, _ in found]
    wide = max(map(len, names))
    digits = max(len(f"{count:,}") for _, _, count in found)
    room = terminal.width - wide - digits - 6
    most = max(count for _, _, count in found)
    block = "█" if terminal.unicode else "#"
    yield heading("tokens of a row", terminal)
    marked = False
    for name, (first, _, count) in zip(names, found, strict=True):
        if first > facts.seq_len and not marked:
            yield _mark(facts, terminal)
            marked = True
        bar = block * max(round(room * count / most), 1 if count else 0)
        yield f"  {name:>{wide}}  {count:>{digits},}  {bar}".rstrip()
    if not marked:
        yield _mark(facts, terminal)
    yield paragraph(
        f"  shortest {lengths.min():,}, median {np.median(lengths):,.0f}, "
        f"mean {lengths.mean():,.1f}, longest {lengths.max():,}",
        terminal,
    )


def _mark(facts: SetFacts, terminal: Terminal) -> str:
    rows, fit = len(facts.lengths), facts.fitting
    share = "all" if rows == fit else f"{fit:,} of"
    said = f" --seq_len {facts.seq_len:,}: {share} {rows:,} rows fit ({fit / rows:.1%}) "
    line = "─" if terminal.unicode else "-"
    return f"  {line * 4}{said}".ljust(terminal.width - 2, line)


def repetitions(found: Duplicates, sets: Sequence[SetFacts], terminal: Terminal) -> Iterator[str]:
    """Rows that are there more than once."""
    yield heading("duplicates, by their tokens", terminal)
    said = [("among the training rows", found.training, 0)]
    if len(sets) > 1:
        said.append(("among the held-out rows", found.held_out, 1))
        said.append(("held-out rows that are trained on", found.shared, 1))
    for what, rows, of in said:
        numbers = f" ({sets[of].prepared.report.source.numbers(rows)})" if rows else ""
        yield "  " + paragraph(f"{what}: {f'{len(rows):,}' if rows else 'none'}{numbers}", terminal)


def legend(terminal: Terminal) -> Iterator[str]:
    """How what is learnt is told from what is not."""
    if terminal.colour:
        words = [("what is learnt", LEARNT), (", ", ""), ("a control token", CONTROL)]
        words += [(", ", ""), ("a control token that is learnt", BOTH)]
    else:
        begin, end = _marks(terminal)
        words = [(f"{begin}what is learnt{end}, <|a control token|>", "")]
    words.append((", \\<|text that looks like one|>", ""))
    for line in wrapped(((c, codes) for text, codes in words for c in text), terminal.width):
        yield painted(line, terminal.colour)


def shown_row(
    shown: Shown, facts: SetFacts, tokenizer: Tokenizer, terminal: Terminal
) -> Iterator[str]:
    """One row as the template writes it."""
    row, whole = shown.row, shown.whole
    source = facts.prepared.report.source
    named = f"row {row.number}"
    if len(source.files) > 1:
        named += f" ({source.numbers([row.number])})"
    if shown.why:
        named += f", {shown.why}"
    length = f"{len(whole.ids):,} tokens, {whole.supervised:,} learnt"
    if len(whole.ids) > facts.seq_len:
        length += f", {len(whole.ids) - facts.seq_len:,} past --seq_len"
    yield heading(f"{named}: {length}", terminal)
    if shown.left_out:
        yield "  " + paragraph(f"left out: {shown.left_out}", terminal)
    cells = list(_cells(pieces(whole, tokenizer), tokenizer, terminal))
    while cells and cells[-1][0].isspace():
        cells.pop()
    for line in wrapped(cells, terminal.width - 4):
        yield f"    {painted(line, terminal.colour)}".rstrip()


def _marks(terminal: Terminal) -> tuple[str, str]:
    return ("⟦", "⟧") if terminal.unicode else ("[[", "]]")


def _cells(found: list[Piece], tokenizer: Tokenizer, terminal: Terminal) -> Iterator[Cell]:
    special = special_pattern(tuple(tokenizer.special_tokens))
    begin, end = _marks(terminal)
    left_out = max(0, len(found) - MOST)
    inside = False
    for index, piece in enumerate(found):
        if left_out and MOST // 2 <= index < MOST // 2 + left_out:
            if index == MOST // 2:
                yield from ((c, "") for c in f"\n[... {left_out:,} stretches ...]\n")
            continue
        if piece.learnt != inside and not terminal.colour:
            yield from ((c, "") for c in (begin if piece.learnt else end))
            inside = piece.learnt
        text = piece.text
        if not piece.control:
            text = special.sub(lambda match: "\\" + match[0], middle_out(text, LONGEST))
        codes = _CODES[piece.learnt, piece.control]
        yield from ((c, codes) for c in visible(text, terminal.unicode))
    if inside:
        yield from ((c, "") for c in end)


_CODES = {
    (False, False): "",
    (False, True): CONTROL,
    (True, False): LEARNT,
    (True, True): BOTH,
}
"""By whether a piece is learnt, and whether it is a control token."""
