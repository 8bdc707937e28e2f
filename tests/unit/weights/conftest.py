"""One whole folder or file of each format, to be spoilt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.model_files import TINY, random_state, write_gguf, write_huggingface, write_meta


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    write_meta(tmp_path / "meta", TINY, random_state(TINY), 2)
    return tmp_path / "meta"


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    write_huggingface(tmp_path / "hf", TINY)
    return tmp_path / "hf"


@pytest.fixture
def hf_parts(tmp_path: Path) -> Path:
    write_huggingface(tmp_path / "hf_parts", TINY, max_shard_size="60KB")
    return tmp_path / "hf_parts"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "model.gguf", TINY, random_state(TINY))
    return tmp_path / "model.gguf"
