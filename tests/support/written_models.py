"""A model of random weights through a writer, and back through a reader."""

from __future__ import annotations

import torch

from llama.model.config import ModelConfig
from llama.weights.reader import WeightReader
from llama.weights.shapes import expected_shapes
from llama.weights.writing import WeightWriter
from tests.support.model_files import State, random_state


def state_of(config: ModelConfig, dtype: torch.dtype) -> State:
    return random_state(config, seed=3, dtype=dtype)


def written(writer: WeightWriter, config: ModelConfig, dtype: torch.dtype) -> list[str]:
    """What `writer` says of the whole."""
    state = state_of(config, dtype)
    for name in expected_shapes(config):
        writer.add(name, state[name])
    return writer.finish()


def assert_came_back(reader: WeightReader, config: ModelConfig, dtype: torch.dtype) -> None:
    """Bit for bit."""
    assert reader.config == config
    state = state_of(config, dtype)
    assert reader.names() == set(state)
    for name, value in state.items():
        read = reader.read(name)
        assert read.dtype == dtype and torch.equal(read, value), name
