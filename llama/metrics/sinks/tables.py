"""Sample answers as a table in Markdown, whatever they hold."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from llama.pages.sample import Sample

_MARKS = re.compile(r"[\\`*_{}\[\]()#+.!|~:^=$-]")
"""What Markdown may take for more than a character; <, > and & are HTML's own."""
_INDENT = re.compile(r"^ +| {2,}", re.MULTILINE)


def markdown(samples: Sequence[Sample]) -> str:
    """A table for each kind of rows: the prompt, and side by side the answers before and after."""
    parts = []
    for rows in dict.fromkeys(sample.rows for sample in samples):
        lines = ["| prompt | before training | after training |", "|---|---|---|"]
        for sample in samples:
            if sample.rows == rows:
                cells = map(cell, (sample.prompt, sample.before, sample.after))
                lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join([f"### {cell(rows)}", "", *lines]))
    return "\n\n".join(parts)


def cell(text: str) -> str:
    """`text` as one cell shows it, character by character: its lines and its indents too."""
    text = html.escape(text.strip("\n"), quote=False)
    text = _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", text)
    text = _INDENT.sub(lambda blanks: "&nbsp;" * len(blanks[0]), text)
    return "<br>".join(text.splitlines()) or "&nbsp;"
