"""A page of HTML taken apart, as a browser would."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, attributes, text and tables of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        """Of all tables, in their order: the texts of the cells."""
        self.blocks: list[str] = []
        """Texts of the preformatted blocks."""
        self._open: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._open = self.rows[-1]
            self._open.append("")
        elif tag == "pre":
            self._open = self.blocks
            self._open.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "pre"):
            self._open = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open is not None:
            self._open[-1] += data

    def row(self, name: str) -> list[str]:
        """The cells after the first of the only row that begins with `name`."""
        (found,) = [cells[1:] for cells in self.rows if cells and cells[0] == name]
        return found
