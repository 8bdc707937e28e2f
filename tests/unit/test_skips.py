"""What is left out is counted by kind, and nothing is left out without one."""

from __future__ import annotations

import re

from tests.support import skips
from tests.support.model_files import ROOT

LEAVES_OUT = re.compile(r"pytest\.skip\(|mark\.skip\b|mark\.skipif\b|importorskip\(|SkipTest")


def test_the_closing_line_counts_by_kind() -> None:
    gpu, file = skips.reason(skips.GPU, "2, found 0"), skips.reason(skips.FILES, "golden.txt")
    assert skips.closing_line(["Skipped: " + gpu, file, gpu]) == (
        "left out here: 2 need a GPU (a CUDA device); 1 need outside files (published models and "
        "rows, in the folder LLAMA_TEST_ASSETS)"
    )
    assert skips.closing_line(["unknown"]) == "left out here: 1 for other reasons"
    assert skips.closing_line([]) == ""


def test_whatever_leaves_a_test_out_says_its_kind() -> None:
    """By `tests/support/skips.py`, which alone calls pytest's own."""
    files = (ROOT / "tests").rglob("*.py")
    found = {file.name for file in files if LEAVES_OUT.search(file.read_text())}
    assert found == {"skips.py", "test_skips.py"}
