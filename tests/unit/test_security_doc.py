"""SECURITY.md links each promise to tests that are there."""

from __future__ import annotations

import re

from tests.support.model_files import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
)
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ")][1:]


def test_every_promise_has_a_test() -> None:
    assert len(ROWS) >= 10
    for row in ROWS:
        promise, proof = row.strip("| ").split(" | ")
        assert "tests/" in proof or "docs/bad_inputs.md" in proof, promise


def test_what_it_names_is_there() -> None:
    for path in re.findall(r"`((?:tests|docs|launcher)/[\w/.]*)", TEXT):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(test_\w+)`", TEXT):
        assert f"def {name}(" in SOURCES, name
    page = (ROOT / "docs/bad_inputs.md").read_text(encoding="utf-8")
    for case in ("a YAML tag that asks for code", "a FIFO"):
        assert case in TEXT and f"- {case}" in page
