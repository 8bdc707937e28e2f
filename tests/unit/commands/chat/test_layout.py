"""Answers are laid out while they come, and no line is too wide."""

from __future__ import annotations

import pytest

from llama.commands.chat.layout import Columns, Flow, columns_of, fits_two
from llama.commands.terminal import Terminal


def terminal(width: int, unicode: bool = True) -> Terminal:
    return Terminal(width, colour=False, unicode=unicode)


def flowed(pieces: list[str], width: int) -> str:
    flow = Flow(terminal(width))
    return "".join([*map(flow.feed, pieces), flow.end()])


FAMILY = "👨‍👩‍👧"


@pytest.mark.parametrize(
    ("pieces", "width", "shown"),
    [
        (["one two", " three"], 8, "one two \nthree"),
        (["one", " two\n\nthr", "ee"], 40, "one two\n\nthree"),
        (["abcdefghij"], 4, "abcd\nefgh\nij"),
        (["full ", "line"], 9, "full line"),
        (["full line next"], 9, "full line\nnext"),
        (["日本語", "日本"], 5, "日本\n語日\n本"),
        (["is 日本"], 4, "is \n日本"),
        (["e\u0301e\u0301e\u0301"], 2, "e\u0301e\u0301\ne\u0301"),
        ([f"{FAMILY}{FAMILY}"], 3, f"{FAMILY}\n{FAMILY}"),
        (["a\tb"], 40, "a    b"),
        (["red \x1b[31m"], 40, "red \\x1b[31m"),
    ],
)
def test_text_flows(pieces: list[str], width: int, shown: str) -> None:
    assert flowed(pieces, width) == shown


@pytest.mark.parametrize("width", [40, 41, 77])
def test_how_it_comes_in_pieces_makes_no_difference(width: int) -> None:
    text = "wide 日本語 and narrow, 🙂 e\u0301 " * 20 + "x" * 100
    whole = flowed([text], width)
    assert flowed(list(text), width) == whole
    assert all(columns_of(line) <= width for line in whole.split("\n"))
    assert whole.replace("\n", "").replace(" ", "") == text.replace(" ", "")


def test_a_word_is_given_out_when_it_is_whole() -> None:
    flow = Flow(terminal(10))
    assert [flow.feed(piece) for piece in ("one tw", "o thr", "ee")] == ["one ", "two ", ""]
    assert flow.end() == "\nthree"


def test_two_columns() -> None:
    columns = Columns(terminal(23))  # two of 10
    shown = columns.heading(["base", "adapter"])
    shown += columns.feed(0, "one two three four ")
    assert shown == "base       │ adapter\n"  # the other side has no line yet
    shown += columns.feed(1, "日本語日本語 b\n\n")
    shown += columns.end(1)
    shown += columns.end(0)
    assert shown.splitlines() == [
        "base       │ adapter",
        "one two    │ 日本語日本",
        "three four │ 語 b",
        "           │",
        "           │",
    ]


def test_a_side_that_has_ended_is_not_waited_for() -> None:
    columns = Columns(terminal(23, unicode=False))
    assert columns.feed(0, "short") == ""
    assert columns.end(0) == ""
    assert columns.feed(1, "first\nsec") == "short      | first\n"
    assert columns.end(1) == "           | sec\n"


def test_two_columns_need_room() -> None:
    assert fits_two(terminal(80)) and not fits_two(terminal(74))
