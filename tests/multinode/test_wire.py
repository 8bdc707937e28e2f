"""What a step moves between two hosts is what it must move, and little besides."""

from __future__ import annotations

import pytest

from tests.multinode.hosts import Hosts
from tests.multinode.wire import LAYERS, Case, Layer, Wire

STEP_CONSTANT = 16 * 1024
"""Bytes: sums of losses and tokens, the gradient's norm, whether it is finite; headers."""
LIMIT = 1.1


@pytest.fixture(scope="module")
def wire(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Wire:
    return Wire(hosts, tmp_path_factory.mktemp("wire"))


@pytest.mark.parametrize(
    "case",
    [Case(0, "fp32"), Case(1, "fp32"), Case(1, "bf16", accumulation=2), Case(2, "bf16")],
    ids=lambda case: f"ZeRO {case.stage} {case.precision} x {case.accumulation}",
)
def test_a_step_moves_little_more_than_the_ring_minimum(case: Case, wire: Wire) -> None:
    for sent in wire.per_step(case):
        assert case.least <= sent <= LIMIT * case.least + STEP_CONSTANT


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.checkpointing)
def test_a_block_moves_two_sums_each_way(layer: Layer, wire: Wire) -> None:
    for sent in wire.per_layer(layer):
        assert layer.expected <= sent <= LIMIT * layer.expected
