"""A real trained model writes what was published with it, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llama.assembly.model import build_model, find_tokenizer
from llama.model.decoding import Sampling, decode, decode_without_cache
from llama.weights.open_model import open_model
from tests.parity.golden_shards import SHARDS
from tests.support.model_files import assets
from tests.support.tiny_runs import launched, succeeded, torchrun_module

TOKENS = 200


def stories() -> Path:
    folder = assets()
    if folder is None or not (folder / "stories260k").is_dir():
        pytest.skip("stories260k is not among the assets; set LLAMA_TEST_ASSETS")
    return folder / "stories260k"


@pytest.mark.slow
def test_greedy_text_from_bos_is_the_published_one() -> None:
    folder = stories()
    done = launched(
        "python",
        "generate.py",
        *("--model", folder, "--raw", "--prompt", "", "--max_new_tokens", str(TOKENS)),
        *("--precision", "float32", "--json"),
    )
    result = succeeded(done)
    assert result["tokens"] == TOKENS
    assert result["text"].encode() == (folder / "golden.txt").read_bytes()  # has no last newline


@pytest.mark.slow
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_any_number_of_shards_at_any_degree(degree: int, tmp_path: Path) -> None:
    """Meta's layout in 1, 2 and 4 files, into as many tensor-parallel ranks."""
    folder, out = stories(), tmp_path / "texts.json"
    arguments = ["--model", folder, "--work", tmp_path / "cut", "--out", out]
    done = torchrun_module("tests.parity.golden_shards", *arguments, ranks=degree)
    assert done.returncode == 0, done.stderr
    golden = (folder / "golden.txt").read_text()
    assert json.loads(out.read_text()) == {str(shards): golden for shards in SHARDS}


def test_the_cache_changes_nothing() -> None:
    source = open_model(str(stories()))
    tokenizer = find_tokenizer(source, None)
    model = build_model(source, torch.float32, torch.device("cpu")).eval()
    prompt = [tokenizer.bos_id, *tokenizer.encode("Once upon a time, a dog")]
    cached = list(decode(model, prompt, 48, frozenset(), Sampling()))
    assert cached == decode_without_cache(model, prompt, 48)
