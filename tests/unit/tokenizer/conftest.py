"""Tokenizers that several files here load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.skips import outside
from tests.support.tokenizer_files import write_sentencepiece


@pytest.fixture(params=["made here", "published"])
def trimming(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a model of 512 pieces that drops the spaces a text begins with."""
    if request.param == "published":
        return outside("stories260k")
    return write_sentencepiece(tmp_path / "tokenizer.model", 512, trims=True).parent
