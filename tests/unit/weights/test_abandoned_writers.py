"""A writer that a full disk stops leaves nothing, and says what stopped it."""

from __future__ import annotations

import errno
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.adapters import gguf_lora
from llama.parallel.side_path import LowRank
from llama.weights.writers import WRITERS
from tests.support.model_files import of_no_files
from tests.support.tiny_runs import CONFIG
from tests.support.tokenizer_files import write_tokenizer_json
from tests.support.written_models import written

ROOM = 100_000
"""Bytes of a file: some of its tensors."""


@contextmanager
def little_room() -> Iterator[None]:
    """The system refuses to let a file grow further, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("format_", WRITERS)
def test_a_disk_without_room_leaves_no_folder(format_: str, tmp_path: Path) -> None:
    tokenizer = write_tokenizer_json(tmp_path / "tokenizer")
    writer: Any = WRITERS[format_](tmp_path / "out", CONFIG, of_no_files(CONFIG), tokenizer)
    with little_room():
        with pytest.raises(OSError) as raised:
            written(writer, CONFIG, torch.float32)
        writer.abandon()
        assert raised.value.errno == errno.EFBIG
        del writer, raised
        gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("format_", WRITERS)
def test_a_writer_that_was_interrupted_leaves_no_folder(format_: str, tmp_path: Path) -> None:
    tokenizer = write_tokenizer_json(tmp_path / "tokenizer")
    writer: Any = WRITERS[format_](tmp_path / "out", CONFIG, of_no_files(CONFIG), tokenizer)
    writer.add("tok_embeddings.weight", torch.zeros(CONFIG.vocab_size, CONFIG.dim))
    writer.abandon()
    del writer
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_a_gguf_lora_names_the_cause(tmp_path: Path) -> None:
    a, b = torch.zeros(1024, CONFIG.dim), torch.zeros(CONFIG.dim, 1024)
    factors = {"layers.0.attention.wq": LowRank(a, b, 1.0, 0.0)}
    with little_room(), pytest.raises(OSError) as raised:
        gguf_lora.write(tmp_path / "adapter.gguf", factors, CONFIG)
    assert raised.value.errno == errno.EFBIG
