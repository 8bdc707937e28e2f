"""A base is known by some of its weights, in whatever layout; a change in any tensor shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama.model.config import ModelConfig
from llama.weights import rotary
from llama.weights.open_model import open_model
from llama.weights.random_init import RandomReader
from tests.support.model_files import (
    TINY,
    State,
    random_state,
    tied,
    write_gguf,
    write_huggingface,
    write_meta,
)

BIASED = replace(TINY, attention_bias=True, mlp_bias=True)


def hash_of(
    folder: Path, config: ModelConfig, state: State, write: Callable[..., object] = write_meta
) -> str:
    write(folder, config, state)
    return open_model(str(folder)).reader.sampled_hash()


@pytest.mark.parametrize("config", [TINY, tied(TINY), BIASED], ids=["plain", "tied", "biases"])
def test_one_model_has_one_hash_in_every_layout(config: ModelConfig, tmp_path: Path) -> None:
    state = random_state(config)
    found = {
        "Meta": hash_of(tmp_path / "meta", config, state),
        "in shards": hash_of(
            tmp_path / "shards", config, state, lambda *args: write_meta(*args, 2)
        ),
        "GGUF": hash_of(tmp_path / "model.gguf", config, state, write_gguf),
    }
    write_huggingface(tmp_path / "theirs", config)
    found["Hugging Face"] = open_model(str(tmp_path / "theirs")).reader.sampled_hash()
    assert len(set(found.values())) == 1, found


def test_a_change_in_any_tensor_shows(tmp_path: Path) -> None:
    """By a little, throughout, as a fine-tuning changes it."""
    state = random_state(TINY)
    hashes = {hash_of(tmp_path / "base", TINY, state)}
    for number, name in enumerate(state):
        changed = state | {name: state[name] * (1 + 1e-6)}
        hashes.add(hash_of(tmp_path / f"{number}", TINY, changed))
    assert len(hashes) == 1 + len(state)


def test_the_first_and_the_last_row_are_among_those_that_are_read(tmp_path: Path) -> None:
    state = random_state(TINY)
    hashes = {hash_of(tmp_path / "base", TINY, state)}
    for row in (0, -1):
        changed = state["layers.1.attention.wq.weight"].clone()
        changed[row, 0] += 1
        changed = state | {"layers.1.attention.wq.weight": changed}
        hashes.add(hash_of(tmp_path / f"row{row}", TINY, changed))
    assert len(hashes) == 3


def test_random_weights_are_told_by_seed_and_sizes() -> None:
    readers = [RandomReader(TINY), RandomReader(TINY, seed=1), RandomReader(BIASED)]
    assert len({reader.sampled_hash() for reader in readers}) == 3
    assert RandomReader(TINY).sampled_hash() == readers[0].sampled_hash()


def test_a_single_row_of_a_head_is_the_same_row_read_alone() -> None:
    interleaved = torch.arange(24.0).reshape(24, 1)
    asked: list[int] = []

    def rows(start: int, length: int) -> torch.Tensor:
        asked.append(length)
        return interleaved[start : start + length]

    whole = rotary.read_halves(rows, 0, 24, 8)
    asked.clear()
    alone = [rotary.read_halves(rows, row, 1, 8) for row in range(24)]
    assert torch.equal(torch.cat(alone), whole) and set(asked) == {1}
