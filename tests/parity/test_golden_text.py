"""A model writes its golden text, byte for byte: a trained one what was published with it, one made
here what transformers writes with its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from llama.assembly.model import build_model, find_tokenizer
from llama.model.decoding import Sampling, decode, decode_without_cache
from llama.weights.open_model import open_model
from tests.parity.families import exported
from tests.parity.golden_shards import SHARDS, cut
from tests.support.closeness import SMALL_MODEL
from tests.support.model_files import random_state, transformers_model
from tests.support.skips import outside
from tests.support.tiny_runs import (
    META_CONFIG,
    launched,
    succeeded,
    torchrun_module,
    write_meta_model,
)

TOKENS = 200


@dataclass(frozen=True)
class Golden:
    """A model in Meta's layout with its tokenizer, and the greedy text that it writes from BOS."""

    folder: Path
    text: str


@pytest.fixture(scope="module", params=["made here", "published"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    if request.param == "published":
        folder = outside("stories260k")
        return Golden(folder, (folder / "golden.txt").read_text())  # has no last newline
    folder = write_meta_model(tmp_path_factory.mktemp("meta"))
    return Golden(folder, transformers_text(folder))


@torch.no_grad()
def transformers_text(folder: Path) -> str:
    """What transformers makes of the same weights, in its own layout, and sentencepiece of the
    tokens. No two tokens are so near to one another that rounding could choose between them."""
    model = transformers_model(META_CONFIG, random_state(META_CONFIG).__getitem__)
    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = torch.tensor([[tokenizer.bos_id()]])
    ids = model.generate(ids, do_sample=False, max_new_tokens=TOKENS)
    assert ids.shape[1] == TOKENS + 1, "it has met its end token: take another seed"
    logits = model(ids[:, :-1]).logits[0]
    first, second = logits.topk(2).values.unbind(1)
    assert (first - second).min() > 2 * SMALL_MODEL * logits.abs().max()
    return tokenizer.decode(ids[0, 1:].tolist())


@pytest.mark.slow
def test_greedy_text_from_bos_is_the_golden_one(golden: Golden) -> None:
    done = launched(
        "python",
        "generate.py",
        *("--model", golden.folder, "--raw", "--prompt", "", "--max_new_tokens", str(TOKENS)),
        *("--precision", "float32", "--json"),
    )
    result = succeeded(done)
    assert result["tokens"] == TOKENS
    assert result["text"].encode() == golden.text.encode()


@pytest.mark.slow
@pytest.mark.parametrize("degree", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 4))])
def test_any_number_of_shards_at_any_degree(degree: int, golden: Golden, tmp_path: Path) -> None:
    """Meta's layout in 1, 2 and 4 files, cut here as releases are, into as many tensor-parallel
    ranks; and what `export` writes for as many ranks as there are."""
    models = [cut(golden.folder, tmp_path / f"in {count}", count) for count in SHARDS]
    models.append(exported(tmp_path / "exported", "meta", golden.folder, shards=degree))
    assert len(list(models[-1].glob("consolidated.*.pth"))) == degree
    out = tmp_path / "texts.json"
    arguments = ["--models", *models, "--out", out]
    done = torchrun_module("tests.parity.golden_shards", *arguments, ranks=degree)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text()) == {folder.name: golden.text for folder in models}


def test_the_cache_changes_nothing(golden: Golden) -> None:
    source = open_model(str(golden.folder))
    tokenizer = find_tokenizer(source, None)
    model = build_model(source, torch.float32, torch.device("cpu")).eval()
    prompt = [tokenizer.bos_id, *tokenizer.encode("Once upon a time, a dog")]
    cached = list(decode(model, prompt, 48, frozenset(), Sampling()))
    assert cached == decode_without_cache(model, prompt, 48)
