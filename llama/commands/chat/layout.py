"""Answers on a terminal while they are being given: broken between words, or in two columns."""

from __future__ import annotations

from collections.abc import Sequence

from llama.commands.terminal import Terminal, visible, width_of

JOINER = "\u200d"
TAB = " " * 4
NARROWEST = 8
"""Columns that a terminal is taken to have at least: enough for an indented wide character."""
NARROWEST_COLUMN = 36
"""Columns; two answers stand side by side where each has as many."""
_GAP = " | "


def columns_of(text: str) -> int:
    """Columns that `text` takes. Emoji that are joined are shown as one."""
    befores = ("", *text)
    return sum(width_of(c) for before, c in zip(befores, text, strict=False) if before != JOINER)


class Flow:
    """Text that comes in pieces, of which no line is wider than `width` columns.

    A word is given out once it is known to be whole, and on a new line where it does not fit on
    this one. Wide characters (Chinese, Japanese, Korean, emoji) need no space to be parted."""

    def __init__(self, terminal: Terminal, width: int | None = None) -> None:
        self._width = width or terminal.width
        self._unicode = terminal.unicode
        self._column = 0
        """Columns taken on this line by what was given out."""
        self._word = ""
        """The end of the text, not given out yet."""
        self._before = ""
        """The character before the next."""

    def feed(self, piece: str) -> str:
        """What can be written now, of `piece` and what came before it."""
        text = visible(piece.replace("\t", TAB), self._unicode)
        return "".join(map(self._take, text))

    def end(self) -> str:
        """The rest, once nothing more comes."""
        return self._word_out()

    def _take(self, character: str) -> str:
        width = 0 if self._before == JOINER else width_of(character)
        self._before = character
        if character == "\n":
            written = self._word_out() + "\n"
            self._column = 0
            return written
        if character == " ":
            return self._word_out() + self._put(" ", 1)
        if width == 2:
            return self._word_out() + self._put(character, 2)
        if width == 0 and not self._word:  # it belongs upon what was given out
            return character
        written = ""
        if self._word and columns_of(self._word) + width > self._width:
            written = self._word_out()  # longer than any line
        self._word += character
        return written

    def _word_out(self) -> str:
        word, self._word = self._word, ""
        return self._put(word, columns_of(word)) if word else ""

    def _put(self, text: str, width: int) -> str:
        """`text` on this line, or on the next where it does not fit; a space is then dropped."""
        if self._column + width <= self._width:
            self._column += width
            return text
        self._column = 0 if text == " " else width
        return "\n" if text == " " else "\n" + text


class Columns:
    """Two texts side by side, each in its own column: a row is given out when both have it."""

    def __init__(self, terminal: Terminal) -> None:
        self._gap = _GAP if not terminal.unicode else _GAP.replace("|", "│")
        self._width = (terminal.width - len(_GAP)) // 2
        self._flows = [Flow(terminal, self._width) for _ in range(2)]
        self._lines: list[list[str]] = [[""], [""]]
        """Of each side the lines not given out, the last one still growing."""
        self._ended = [False, False]

    def heading(self, names: Sequence[str]) -> str:
        """The first row."""
        return self._row(names[0], names[1])

    def feed(self, side: int, piece: str) -> str:
        """What can be written now that `piece` has come on `side`."""
        self._add(side, self._flows[side].feed(piece))
        return self._rows()

    def end(self, side: int) -> str:
        """What can be written now that nothing more comes on `side`."""
        self._add(side, self._flows[side].end())
        self._ended[side] = True
        return self._rows()

    def _add(self, side: int, text: str) -> None:
        first, *more = text.split("\n")
        lines = self._lines[side]
        lines[-1] += first
        lines += more

    def _rows(self) -> str:
        rows: list[str] = []
        while any(self._lines) and all(map(self._is_ready, range(2))):
            left, right = (lines.pop(0) if lines else "" for lines in self._lines)
            rows.append(self._row(left, right))
        return "".join(rows)

    def _is_ready(self, side: int) -> bool:
        """Whether the next line of `side` is whole, or there is none."""
        return self._ended[side] or len(self._lines[side]) > 1

    def _row(self, left: str, right: str) -> str:
        left = left.rstrip()
        room = " " * (self._width - columns_of(left))
        return f"{left}{room}{self._gap}{right}".rstrip() + "\n"


def fits_two(terminal: Terminal) -> bool:
    """Whether two answers can be read side by side."""
    return terminal.width >= 2 * NARROWEST_COLUMN + len(_GAP)
