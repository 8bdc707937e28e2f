"""What some tests need and not every machine has. A test that is left out for want of it says which
of these kinds it is, and the run's last lines say how many of each there were.

Nothing else in the tests skips: whatever can be made on the spot is made (`tests/support`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

GPU, HOSTS, USER, FILES = "a GPU", "two hosts", "a user that is not root", "outside files"
PACKAGES, PROGRAMS = "packages of an extra", "programs of the system"
HARNESS = "lm-evaluation-harness"
HOW = {
    GPU: "a CUDA device",
    HOSTS: "make test-multinode, as root",
    USER: "root may read any file",
    FILES: "published models and rows, in the folder LLAMA_TEST_ASSETS",
    PACKAGES: "make install-test",
    HARNESS: "make test-harness",
    PROGRAMS: "such as Go, of the package golang-go",
}
"""Each kind with what would run its tests."""


def reason(kind: str, detail: str) -> str:
    """As pytest shows it."""
    assert kind in HOW, kind
    return f"needs {kind}: {detail}"


def skip(kind: str, detail: str) -> NoReturn:
    """Leave the running test out."""
    pytest.skip(reason(kind, detail))


def left_out(kind: str, detail: str) -> pytest.MarkDecorator:
    """A mark that leaves its test out."""
    return pytest.mark.skip(reason=reason(kind, detail))


def needs_gpus(count: int = 1) -> pytest.MarkDecorator:
    """Left out where there are fewer CUDA devices."""
    here = torch.cuda.device_count()
    return pytest.mark.skipif(here < count, reason=reason(GPU, f"{count}, found {here}"))


def needs_triton() -> pytest.MarkDecorator:
    """Left out where it is not installed: it comes with torch for CUDA."""
    missing = importlib.util.find_spec("triton") is None
    return pytest.mark.skipif(missing, reason=reason(GPU, "Triton, of torch for CUDA"))


def needs_another_user_than_root() -> pytest.MarkDecorator:
    return pytest.mark.skipif(os.geteuid() == 0, reason=reason(USER, HOW[USER]))


def needs_packages(*names: str) -> pytest.MarkDecorator:
    """Left out where one of them is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=reason(PACKAGES, ", ".join(missing)))


def needs_harness() -> pytest.MarkDecorator:
    missing = importlib.util.find_spec("lm_eval") is None
    return pytest.mark.skipif(missing, reason=reason(HARNESS, "lm_eval"))


def needs_program(name: str) -> pytest.MarkDecorator:
    """Left out where the shell does not find it."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=reason(PROGRAMS, name))


def outside(name: str) -> Path:
    """A published file or folder that the tests cannot make: `name` in the folder that the variable
    LLAMA_TEST_ASSETS names. The test is left out where it is not there."""
    folder = os.environ.get("LLAMA_TEST_ASSETS")
    if not folder:
        skip(FILES, f"{name}, in a folder that LLAMA_TEST_ASSETS names")
    if not (Path(folder) / name).exists():
        skip(FILES, f"{name} is not in LLAMA_TEST_ASSETS={folder}")
    return Path(folder).resolve() / name


def closing_line(reasons: Iterable[str]) -> str:
    """One line that counts the tests left out, by kind; empty where there were none."""
    counts = Counter(_kind(text) for text in reasons)
    kinds = [f"{counts[kind]} need {kind} ({HOW[kind]})" for kind in HOW if counts[kind]]
    if counts[None]:
        kinds.append(f"{counts[None]} for other reasons")
    return f"left out here: {'; '.join(kinds)}" if kinds else ""


def _kind(text: str) -> str | None:
    found = (kind for kind in HOW if text.removeprefix("Skipped: ").startswith(f"needs {kind}: "))
    return next(found, None)
