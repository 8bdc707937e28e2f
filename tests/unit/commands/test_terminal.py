"""Text that fits a terminal and cannot command it."""

from __future__ import annotations

import io

import pytest

from llama.commands.terminal import (
    Cell,
    middle_out,
    painted,
    terminal_of,
    visible,
    width_of,
    wrapped,
)


class Stream(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Plain(Stream):
    encoding = "ANSI_X3.4-1968"

    def isatty(self) -> bool:
        return False


def lines(text: str, width: int) -> list[str]:
    return ["".join(c for c, _ in line) for line in wrapped([(c, "") for c in text], width)]


@pytest.mark.parametrize(
    ("stream", "environ", "colour", "unicode"),
    [
        (Stream(), {}, True, True),
        (Stream(), {"NO_COLOR": ""}, True, True),  # as no-color.org has it: set and not empty
        (Stream(), {"NO_COLOR": "1"}, False, True),
        (Stream(), {"TERM": "dumb"}, False, True),
        (Plain(), {}, False, False),
    ],
)
def test_what_a_stream_can_show(
    stream: io.StringIO, environ: dict[str, str], colour: bool, unicode: bool
) -> None:
    found = terminal_of(stream, environ)
    assert (found.colour, found.unicode) == (colour, unicode)


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("120", 120), ("7", 40)])
def test_the_width_is_the_terminals(
    monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_of(Stream(), {}).width == width


@pytest.mark.parametrize(
    ("character", "width"), [("a", 1), ("é", 1), ("日", 2), ("🙂", 2), ("\u0301", 0), ("\u200d", 0)]
)
def test_columns_of_a_character(character: str, width: int) -> None:
    assert width_of(character) == width


def test_lines_fit() -> None:
    assert lines("one two three", 8) == ["one two ", "three"]
    assert lines("a\n\nb\n", 8) == ["a", "", "b", ""]
    assert lines("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert lines("日本語日本", 5) == ["日本", "語日", "本"]
    assert lines("", 4) == [""]
    text = "wide 日本語 and narrow, " * 30
    for width in (40, 41, 77):
        found = lines(text, width)
        assert "".join(found) == text
        assert all(sum(map(width_of, line)) <= width for line in found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("tab\tbell\x07", "tab\\tbell\\x07"),
        ("line\nline", "line\nline"),
        ("\r\u202eright", "\\r\\u202eright"),
        ("日\xa0🙂", "日\xa0🙂"),
        ("lone \ud800", "lone \\ud800"),
    ],
)
def test_nothing_moves_the_cursor(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_ascii_alone() -> None:
    assert visible("é日🙂", unicode=False) == "\\xe9\\u65e5\\U0001f642"


def test_the_middle_of_a_long_text_is_left_out() -> None:
    assert middle_out("a" * 600, 600) == "a" * 600
    short = middle_out("a" * 1000 + "b" * 1000, 600)
    assert short == "a" * 400 + " [... 1,400 characters ...] " + "b" * 200


def test_colour_is_taken_back_at_the_end_of_each_line() -> None:
    line: list[Cell] = [("a", ""), ("b", "32"), ("c", "1;32")]
    assert painted(line, colour=False) == "abc"
    assert painted(line, colour=True) == "a\x1b[0m\x1b[32mb\x1b[0m\x1b[1;32mc\x1b[0m"
