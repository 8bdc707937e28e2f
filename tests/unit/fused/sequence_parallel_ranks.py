"""The ranks of `test_ranks`: `torchrun ... -m tests.unit.fused.sequence_parallel_ranks`."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from llama.adapters.attach import adapters, attach, initialise
from llama.adapters.sequence import run_on_share
from llama.assembly.model import build_model
from llama.data.batches import make_batch, own_part
from llama.data.feed import model_inputs
from llama.engine import start_processes
from llama.fused import tiles
from llama.fused.captured import capture
from llama.fused.install import install
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model.config import LINEARS, ModelConfig
from llama.model.kept import Kept
from llama.model.transformer import Transformer, run_block
from llama.parallel import dropout
from llama.parallel.layers import shard_dim
from llama.parallel.mesh import SINGLE, TensorParallel, create_mesh
from llama.parallel.sequence import SequenceParallel
from llama.planning.wire import traded_bytes, trades
from llama.settings import LoRAOptions
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.parity.sequence_steps import counted
from tests.parity.test_packing import documents, loss_and_gradients
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY

CPU = torch.device("cpu")
FEWER = replace(TINY, n_kv_heads=1)
"""Fewer kv heads than ranks."""
TARGETS = (LINEARS, ("wq", "wv"), ("wo", "w2"))
PACKINGS = ([8, 8], [5, 9, 3], [7])


def model_of(
    config: ModelConfig,
    targets: tuple[str, ...],
    p: float,
    base: str,
    tp: TensorParallel = SINGLE,
) -> Transformer:
    source = ModelSource("tiny", RandomReader(config), None)
    model = build_model(source, torch.float32, CPU, tp, base=base)
    attach(model, LoRAOptions(4, 8.0, p, targets))
    initialise(model, 0, CPU)
    for number, (_, adapter) in enumerate(adapters(model)):
        b: Any = adapter.b
        with torch.no_grad():
            seed = number + (0 if shard_dim(b) is None else 100 * tp.rank)
            b.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
    return model.train()


def result(model: Transformer, shares: SequenceParallel, lengths: list[int]) -> Any:
    """The loss of all ranks' tokens and its gradients, as the model runs now."""
    torch.manual_seed(3)
    inputs = model_inputs(own_part(make_batch([documents(lengths)], 0), shares), CPU)
    loss, gradients = loss_and_gradients(model, [inputs])
    loss = loss.detach()
    for found in (loss, *gradients.values()):
        dist.all_reduce(found, group=shares.group)
    return loss.item(), {name: gradient.clone() for name, gradient in gradients.items()}


def check_equal(
    model: Transformer, shares: SequenceParallel, lengths: list[int], expected: Any, kept: Any
) -> int:
    """The loss and the gradients are those `expected`; gives the bytes that ranks traded."""
    loss, whole = expected
    with counted() as sent:
        found, gradients = result(model, shares, lengths)
    assert_close(found, loss, SMALL_MODEL)
    for name, gradient in gradients.items():
        assert_close(gradient, whole[name], SMALL_MODEL, f"{name}, {kept}")
    everyone = torch.tensor(sent["bytes"])
    dist.all_reduce(everyone, group=shares.group)
    return int(everyone)


def check_equal_to_one_process(
    config: ModelConfig, targets: tuple[str, ...], p: float, lengths: list[int], base: str
) -> None:
    """Whatever is kept; and no byte more is sent than is planned."""
    shares = create_mesh(1, dist.get_world_size()).sequence_parallel
    expected = loss_and_gradients_of_one(config, targets, p, lengths, base)
    model = model_of(config, targets, p, base)
    run_on_share(model, shares)
    for kept in (None, *Kept):
        model.run_block = run_block
        if kept is not None:
            assert install(model) is None
            assert "share tokens" in str(capture(model))
        model.keep([Kept.ALL if kept is None else kept] * config.n_layers)
        traded = check_equal(model, shares, lengths, expected, kept)
        of_blocks = [trades(level, kept is not None, "wo" in targets) for level in model.kept]
        planned = traded_bytes(config, sum(lengths), shares.size, 1, of_blocks, 4)
        # Nothing goes back through the first attention where nothing before it trains.
        assert targets != LINEARS or traded == planned > 0, (traded, planned, kept)


def loss_and_gradients_of_one(
    config: ModelConfig, targets: tuple[str, ...], p: float, lengths: list[int], base: str
) -> Any:
    model = model_of(config, targets, p, base)
    torch.manual_seed(3)
    batch = make_batch([documents(lengths)], 0)
    loss, gradients = loss_and_gradients(model, [model_inputs(batch, CPU)])
    return loss.item(), {name: gradient.clone() for name, gradient in gradients.items()}


def check_equal_to_plain_on_shards() -> None:
    """Two ranks share tokens, and two a model, of each of which they have some rows and columns."""
    mesh = create_mesh(2, 2)
    model = model_of(TINY, LINEARS, 0.3, "half", mesh.tensor_parallel)
    shares, lengths = mesh.sequence_parallel, PACKINGS[1]
    run_on_share(model, shares)
    plain = result(model, shares, lengths)
    for kept in Kept:
        assert install(model) is None
        model.keep([kept] * TINY.n_layers)
        traded = check_equal(model, shares, lengths, plain, kept)
        of_blocks = [trades(level, fused=True, on_output=True) for level in model.kept]
        assert traded == traded_bytes(TINY, sum(lengths), 2, 2, of_blocks, 4) > 0


def main() -> None:
    start_processes()
    with mock.patch.object(dropout, "on_cuda", lambda _: True):  # by one form of masks
        if dist.get_world_size() == 4:
            check_equal_to_plain_on_shards()
            stop_processes()
            return
        for targets, p, lengths in product(TARGETS, (0.0, 0.3), PACKINGS):
            check_equal_to_one_process(TINY, targets, p, lengths, "half")
        check_equal_to_one_process(FEWER, LINEARS, 0.3, PACKINGS[1], "half")
        for base in ("fp8", "nf4"):
            check_equal_to_one_process(TINY, LINEARS, 0.3, PACKINGS[1], base)
        with mock.patch.object(tiles, "TOKENS", 3):
            check_equal_to_one_process(TINY, LINEARS, 0.3, PACKINGS[1], "half")
    stop_processes()


if __name__ == "__main__":
    run_program(main)
