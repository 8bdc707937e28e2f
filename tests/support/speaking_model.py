"""A tiny model that says a text known beforehand, over and over, whatever it is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tests.support.model_files import random_state, transformers_model
from tests.support.tiny_runs import CONFIG
from tests.support.tokenizer_files import byte_tokenizer, write_tokenizer_json

POSITIONS = 8192


def write_speaking_model(folder: Path, text: str) -> Path:
    """A Hugging Face folder with a tokenizer of bytes. Blocks add nothing, and a token's row of the
    output is the embedding of the one that it follows: each token alone decides the next. So no
    byte of `text` may come twice; it begins after the colon that ends Alpaca's prompt."""
    config = replace(CONFIG, max_seq_len=POSITIONS)
    state = random_state(config)
    for name in state:
        if name.endswith((".wo.weight", ".w2.weight")):
            state[name] = torch.zeros_like(state[name])
    state["norm.weight"] = torch.ones_like(state["norm.weight"])
    ids = byte_tokenizer(folder).encode(text)
    assert len(set(ids)) == len(ids), "a token of the text comes twice"
    (colon,) = byte_tokenizer(folder).encode(":")
    embeddings = state["tok_embeddings.weight"]
    output = torch.zeros_like(state["output.weight"])
    for before, after in zip([colon, ids[-1], *ids], [ids[0], ids[0], *ids[1:]], strict=False):
        output[after] += embeddings[before] / embeddings[before].norm() ** 2
    state["output.weight"] = output
    transformers_model(config, state.__getitem__).save_pretrained(folder)
    write_tokenizer_json(folder)
    return folder
