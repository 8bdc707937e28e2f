"""A page: one file that asks for nothing, in which nothing given is markup."""

from __future__ import annotations

from llama.pages.figures import Series, lines, style_sheet
from llama.pages.page import Code, Columns, Drawing, Section, Table, Text, page
from tests.support.html_page import Page

HOSTILE = "</pre><script>alert('x')</script><img src=x onerror=alert(1)> {{ 7 * 7 }} &amp; \"q\""


def whole(text: str) -> str:
    figure = lines([Series(text, [1, 2], [1.0, 2.0])], text, text, title=text)
    blocks = [
        Text(text, title=text, source=text),
        Code(text),
        Code(text, folded=text),
        Table([text, text], [[text, text]], wide=True),
        Drawing(figure, source=text),
        Columns([(text, text), (text, text)]),
    ]
    return page(text, [Section(text, blocks), Section("left out", [])])


def test_whatever_is_given_is_text() -> None:
    plain, hostile = Page(whole("plain")), Page(whole(HOSTILE))
    assert hostile.tags == plain.tags
    names = [name for name, _ in hostile.attributes]
    assert names == [name for name, _ in plain.attributes]
    assert hostile.text.count(HOSTILE) >= 14
    assert "left out" not in plain.text


def test_it_asks_nothing_of_the_network_and_runs_nothing() -> None:
    read = Page(whole("plain"))
    assert not {"script", "link", "img", "iframe", "base", "object"} & set(read.tags)
    for name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "src", "xlink:href") or (value or "").startswith("#")
    assert "@import" not in whole("plain") and "url(http" not in whole("plain")


def test_light_and_dark_are_of_the_reader_s_wish() -> None:
    text = whole("plain")
    light, dark = style_sheet()
    before, after = text.split("@media (prefers-color-scheme: dark)")
    assert all(f"{name}: {value};" in before for name, value in light.items())
    assert all(f"{name}: {value};" in after for name, value in dark.items())


def test_half_a_surrogate_pair_can_be_written() -> None:
    assert "a?b" in Page(page("a\ud800b", [])).text
