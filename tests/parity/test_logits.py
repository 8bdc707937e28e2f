"""Our logits are those of transformers, from every format that holds the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama.assembly.model import build_model
from llama.model.config import ModelConfig
from llama.model.documents import Documents
from llama.model.scaling import Llama3Scaling
from llama.model.transformer import Transformer
from llama.weights.open_model import open_model
from tests.support.closeness import SMALL_MODEL, assert_close, difference
from tests.support.model_files import (
    LLAMA31_SCALING,
    TINY,
    write_gguf,
    write_huggingface,
    write_meta,
)
from tests.support.tokenizer_files import smollm2, smollm2_gguf

LARGE_MODEL = 3e-5
"""For SmolLM2, as `SMALL_MODEL` is for TINY: 181 products, of sums of up to 1,536 terms. Each
rounds by about 20 EPSILON, and all of them by chance by sqrt(181) times that."""
LENGTH = 64
TEXT = (
    "Water boils at 100 degrees at sea level, and at less on a mountain: the air is thinner there."
)

# Scaled from 16 positions on, so that a text of 64 is long enough to feel it.
SCALED = replace(TINY, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 16))
LLAMA31 = replace(TINY, rope_theta=5e5, rope_scaling=LLAMA31_SCALING, max_seq_len=16384)
CONFIGS = {
    "grouped-query": TINY,
    "one kv head": replace(TINY, n_kv_heads=1),
    "full heads": replace(TINY, n_kv_heads=8),
    "wide heads": replace(TINY, head_dim=16),
    "biases": replace(TINY, attention_bias=True, mlp_bias=True),
    "tied": replace(TINY, tied_embedding=True),
    "llama3 scaling": SCALED,
    "all of it": replace(SCALED, tied_embedding=True, attention_bias=True, mlp_bias=True),
}


def tokens(vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocab_size, (LENGTH,), generator=generator)


@torch.no_grad()
def our_logits(model: Transformer, ids: torch.Tensor | None = None) -> torch.Tensor:
    ids = tokens(model.config.vocab_size) if ids is None else ids
    return model(ids, torch.arange(len(ids)), Documents((0, len(ids))))


@torch.no_grad()
def their_logits(folder: Path, vocab_size: int) -> torch.Tensor:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(tokens(vocab_size).unsqueeze(0)).logits[0]


def loaded(path: Path | str) -> Transformer:
    return build_model(open_model(str(path)), torch.float32, torch.device("cpu")).eval()


def root_mean_square(difference: torch.Tensor) -> float:
    return difference.double().square().mean().sqrt().item()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.numeric
@torch.no_grad()
def test_smollm2_from_gguf_equals_transformers() -> None:
    """They read the file themselves: another dequantisation, another permutation of rows.

    Through 30 layers float32 rounds in either model. So their float64 says whether what is between
    the two is that and nothing else: ours is about as near to it as theirs is."""
    from transformers import LlamaForCausalLM

    path = smollm2_gguf()
    model = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ids = torch.tensor(smollm2().encode(TEXT))
    ours, theirs = our_logits(loaded("smollm2-135m"), ids), model(ids.unsqueeze(0)).logits[0]
    assert_close(ours, theirs, LARGE_MODEL)
    exact = model.double()(ids.unsqueeze(0)).logits[0]
    # Each CPU adds up in its own order, so neither of the two is always the nearer.
    assert root_mean_square(ours - exact) < 2 * root_mean_square(theirs - exact)
    assert_close(theirs, exact, LARGE_MODEL)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_huggingface_folder_equals_transformers(config: ModelConfig, tmp_path: Path) -> None:
    write_huggingface(tmp_path, config)
    ours, theirs = our_logits(loaded(tmp_path)), their_logits(tmp_path, config.vocab_size)
    assert_close(ours, theirs, SMALL_MODEL)


def test_the_scaling_is_felt_at_this_length(tmp_path: Path) -> None:
    """Else the comparison above would say nothing of it."""
    for name, config in {"plain": TINY, "scaled": SCALED}.items():
        write_huggingface(tmp_path / name, config)
    plain, scaled = (our_logits(loaded(tmp_path / name)) for name in ("plain", "scaled"))
    assert difference(scaled, plain) > 1000 * SMALL_MODEL


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, tied_embedding=True), LLAMA31],
    ids=["plain", "tied", "llama 3.1"],
)
def test_every_format_of_the_same_weights_gives_equal_logits(
    config: ModelConfig, tmp_path: Path
) -> None:
    """Bit for bit: the weights that are read are the same bits, and the model is the same code."""
    state = write_huggingface(tmp_path / "hf", config)
    write_meta(tmp_path / "meta", config, state)
    write_meta(tmp_path / "shards", config, state, shards=2)
    write_gguf(tmp_path / "model.gguf", config, state)
    expected = our_logits(loaded(tmp_path / "hf"))
    for other in ("meta", "shards", "model.gguf"):
        assert torch.equal(our_logits(loaded(tmp_path / other)), expected), other
