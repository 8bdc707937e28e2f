"""The settings of `report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llama.settings.options.marks import POSITIONAL


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Settings of `report`."""

    runs: list[Path] = field(metadata=POSITIONAL)
    """Folders of runs; several are laid side by side."""
    output: Path | None = None
    """The HTML file to write; none means report.html, in the run's folder, or of several runs
    here."""
    json: bool = False
    """Whether the last line of standard output is the page's path and what came of each run, as
    one JSON object."""
