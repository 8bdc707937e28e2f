"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.model_files import ROOT

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
NAMED = re.compile(r"`((?:tests|launcher|llama|ds_configs|docs)/[\w./-]+?\.\w+)(?:::(\w+))?`")
LINKED = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    missing = [link for link in LINKED.findall(text) if not (page.parent / link).exists()]
    for file, test in NAMED.findall(text):
        path = ROOT / file
        if not path.is_file() or (test and f"def {test}(" not in path.read_text()):
            missing.append(f"{file}::{test}")
    assert not missing
