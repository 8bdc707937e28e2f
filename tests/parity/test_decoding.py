"""Texts decoded together are those that transformers writes after each prompt alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.model.decoding import Sampling, decode_together
from tests.parity.test_logits import loaded
from tests.parity.test_rope_scalings import FIELDS, WIDE, edited
from tests.support.closeness import SMALL_MODEL
from tests.support.model_files import write_huggingface

NEW = 12
LENGTHS = (5, 1, 40, 17, 6)
"""Of the prompts; the longest goes past the original positions of every scaling."""
SCALINGS = ("linear", "dynamic, within the positions", "llama3", "yarn", "yarn, attention_factor")


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(WIDE.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]


@torch.no_grad()
def theirs(folder: Path) -> list[list[int]]:
    """No two tokens are so near to one another that rounding could choose between them."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    texts = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        ids = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW
        )
        logits = model(ids[:, :-1]).logits[0, len(prompt) - 1 :]
        first, second = logits.topk(2).values.unbind(1)
        assert (first - second).min() > 2 * SMALL_MODEL * logits.abs().max(), "take another seed"
        texts.append(ids[0, len(prompt) :].tolist())
    return texts


def ours(folder: Path) -> list[list[int]]:
    """Three at a time, so that two wait for a place."""
    done = decode_together(loaded(folder), prompts(), NEW, frozenset(), Sampling(), 3)
    return [text.tokens for text in sorted(done, key=lambda text: text.index)]


@pytest.mark.parametrize("kv_heads", [8, 4, 1])
def test_heads_that_share_keys_and_values(kv_heads: int, tmp_path: Path) -> None:
    write_huggingface(tmp_path, replace(WIDE, n_kv_heads=kv_heads))
    assert ours(tmp_path) == theirs(tmp_path)


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_positions(name: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "scaled").mkdir()
    write_huggingface(tmp_path / "plain", WIDE)
    fields: dict[str, Any] = FIELDS[name]
    folder = edited(tmp_path / "plain", tmp_path / "scaled", fields)
    assert ours(folder) == theirs(folder)
