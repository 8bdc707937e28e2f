"""The settings of `combine`, and every check of them that opens no adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llama.settings.options.marks import POSITIONAL
from llama.settings.validate import check_adapter_folder, check_output

MOST = 1000.0
"""The largest weight: a larger one is a slip."""
_WEIGHT = re.compile(r"(.+):(-?(?:\d+(?:\.\d+)?|\.\d+))", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class CombineOptions:
    """Settings of `combine`."""

    output_dir: Path
    """Folder that becomes the adapter (PEFT's); nothing may be there."""
    adapter: list[Path] = field(default_factory=list, metadata=POSITIONAL)
    """The adapters, as --adapter of generate takes them, each with its weight, as
    runs/a:0.7 runs/b:0.3, which may be below 0; without one it is 1."""
    how: Literal["cat", "linear"] = "cat"
    """cat: the weighted sum itself, of all ranks together; linear: of one rank, A and B summed
    apart, which is near it only where the adapters are alike."""
    model: str | None = None
    """The base of all of them, as generate takes it; none means their own."""
    force: bool = False
    """Whether adapters of another base or tokenizer are combined all the same, with a warning."""
    json: bool = False
    """Whether the last line of standard output is a JSON object."""


def weights(adapters: Sequence[Path]) -> list[tuple[Path, float]]:
    """Each path with its weight. A path that exists is itself, whatever it ends in."""
    found = []
    for path in adapters:
        match = None if os.path.exists(path) else _WEIGHT.fullmatch(str(path))
        found.append((Path(match[1]), float(match[2])) if match else (path, 1.0))
    return found


def check_combine(options: CombineOptions) -> list[str]:
    """Every problem of `combine`'s settings."""
    problems = []
    if len(options.adapter) < 2:
        problems.append(f"--adapter: expected two or more adapters, found {len(options.adapter)}")
    for path, weight in weights(options.adapter):
        problems += check_adapter_folder("adapter", path)
        if not 0 < abs(weight) <= MOST:
            expected = f"expected a weight from -{MOST:g} to {MOST:g} that is not 0"
            problems.append(f"--adapter: {path}: {expected}, found {weight:g}")
    if os.path.lexists(options.output_dir):
        problems.append(f"--output_dir: {options.output_dir} is there already; give another folder")
    return problems + check_output(options.output_dir, unused=False)
