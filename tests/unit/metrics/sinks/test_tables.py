"""A table holds what a model may say, as TensorBoard shows it."""

from __future__ import annotations

import html
import re

from tensorboard.plugin_util import markdown_to_safe_html

from llama.metrics.sinks.tables import markdown
from llama.pages.sample import Sample

NASTY = (
    "a | b\n\n| x |\n|---|\n* one\n    code()\n`t` **b** _i_ [l](http://x) <b>bold</b> &amp; \\ #1"
)


def cells(page: str) -> list[str]:
    found = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
    lines = (re.sub(r"<br */?>", "\n", text) for text in found)
    return [html.unescape(text).replace("\xa0", " ") for text in lines]


def test_whatever_a_model_says_is_one_cell_and_shown_as_it_is() -> None:
    rows = [Sample("Held out", NASTY, "", NASTY), Sample("Held out", "p", "q", "- r")]
    page = markdown_to_safe_html(markdown(rows))
    assert page.count("<table>") == 1 and page.count("<tr>") == 3
    assert cells(page) == [NASTY, " ", NASTY, "p", "q", "- r"]
    assert not re.search(r"<(b|em|strong|a|code|ul|li|h1)\b", page)


def test_each_kind_of_rows_has_a_table_with_before_and_after_side_by_side() -> None:
    rows = [Sample("From the training rows", "p", "q", "r"), Sample("Held out", "s", "t", "u")]
    page = markdown_to_safe_html(markdown(rows))
    assert re.findall("<h3>(.*?)</h3>", page) == ["From the training rows", "Held out"]
    heads = re.findall("<th>(.*?)</th>", page)
    assert heads == ["prompt", "before training", "after training"] * 2
    assert cells(page) == ["p", "q", "r", "s", "t", "u"]
