"""The settings of `benchmark` that are a suite's; the docstring under a field is its `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """A table of many steps in place of one."""

    suite: Literal["one-gpu", "tiny"] | None = None
    """A whole table in place of one step: one-gpu times this program and other trainers in turn on
    one GPU, as docs/benchmarks tells; tiny goes the same way on a CPU, to show that it works. Both
    take --data, --rows, --tokenizer, --template and --json besides."""
    only: tuple[str, ...] = ()
    """With --suite: rows of its table, as 2,3,5; none means all."""
    pairs: int = 1
    """With --suite: runs of ours for each work, with the peers' in between."""
    budget: float = 7200.0
    """With --suite: seconds after which no further process is started."""
    output_dir: Path | None = None
    """With --suite: folder for its JSON and Markdown; none means one of the suite's name."""
