"""What the documents and the comments of the code name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.model_files import ROOT

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
NAMED = re.compile(r"`((?:tests|launcher|llama|ds_configs|docs)/[\w./-]+?\.\w+)(?:::(\w+))?`")
IN_CODE = re.compile(r"`((?:tests|launcher|llama|ds_configs|docs)/[\w./-]*)`")
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


def test_files_and_folders_that_the_code_names_exist() -> None:
    sources = [*(ROOT / "llama").rglob("*.py"), *(ROOT / "launcher").glob("*.py")]
    named = {
        (name, str(source.relative_to(ROOT)))
        for source in sources
        for name in IN_CODE.findall(source.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert sorted(pair for pair in named if not (ROOT / pair[0]).exists()) == []
