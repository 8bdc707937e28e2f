"""One HTML file of sections: no network, no script, light and dark, for a phone and a desk.

What a page shows comes from files that may hold anything, so all of it is text and is escaped; the
one markup that is put in as it stands is a drawing of `llama/pages/figures.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import jinja2
from markupsafe import Markup

from llama.pages.figures import Figure, style_sheet

_TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of a section. Where the page is wide, two stand beside each other."""

    kind: ClassVar[str]
    title: str = ""
    source: str = ""
    """The file and fields that it shows, as `metrics.jsonl: loss`."""
    wide: bool = False
    """Whether it takes the whole width."""


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    kind = "text"
    text: str


@dataclass(frozen=True)
class Code(Block):
    """Text whose lines are kept; long ones wrap."""

    kind = "code"
    text: str
    folded: str = field(default="", kw_only=True)
    """What stands in its place until it is opened; none means that it is shown."""


@dataclass(frozen=True)
class Table(Block):
    """Rows of texts, the first of each its name. It scrolls inside itself where it is too wide."""

    kind = "table"
    head: Sequence[str]
    """May be empty."""
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Drawing(Block):
    """A figure."""

    kind = "drawing"
    figure: Figure

    @property
    def svg(self) -> Markup:
        return Markup(self.figure.svg())


@dataclass(frozen=True)
class Columns(Block):
    """Texts side by side, each under its heading; one below the other on a phone."""

    kind = "columns"
    columns: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def page(title: str, sections: Sequence[Section], of: str = "") -> str:
    """The whole file. Sections without a block are left out. `of` is what programs know the
    page by; no reader sees it."""
    light, dark = style_sheet()
    text = _template().render(
        title=title, of=of, sections=[s for s in sections if s.blocks], light=light, dark=dark
    )
    # Halves of surrogate pairs, which JSON may hold, are no text that a file can keep.
    return text.encode(errors="replace").decode() + "\n"
