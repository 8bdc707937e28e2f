"""`--shard_base`: a model whose frozen base is cut over the data-parallel ranks."""

from __future__ import annotations

import re

import torch
from torch import nn

from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.rope import Rotation
from llama.model.transformer import RunBlock, Transformer, TransformerBlock
from llama.parallel.sharded import ShardedBase, Unit
from llama.weights.load import Placement

_OF_BLOCK = re.compile(r"layers\.(\d+)\.")


class ShardedPlacement(Placement):
    """The placement of `load_weights`: each rank reads, of every parameter of `base`, the rows that
    its share is made of, and keeps the share. The final norm, a vector, stays whole."""

    def __init__(self, base: ShardedBase) -> None:
        self._base = base
        self._starts: dict[str, int] = {}
        """Of a parameter's bytes, the first that is read here."""

    def expect(self, name: str, like: torch.Tensor) -> None:
        if unit := self._unit(name):
            unit.expect(name, like)

    def rows(self, name: str, count: int, by_rows: bool) -> tuple[int, int]:
        if (unit := self._unit(name)) is None:
            return 0, count
        first, end = unit.own_bytes(name)
        if first == end:
            return 0, 0
        if not by_rows:
            return 0, count
        size = unit.nbytes(name) // count
        start = first // size
        self._starts[name] = start * size
        return start, -(-end // size) - start

    def place(self, name: str, parameter: nn.Parameter, part: nn.Parameter) -> None:
        if unit := self._unit(name):
            unit.put(name, parameter, part, self._starts.pop(name, 0))

    def _unit(self, name: str) -> Unit | None:
        if found := _OF_BLOCK.match(name):
            return self._base.blocks[int(found[1])]
        of_name = {"tok_embeddings.weight": self._base.embedding, "output.weight": self._base.head}
        return of_name.get(name)


class RunSharded:
    """Calls blocks as `run_block` does, each with its weights there, in both passes."""

    def __init__(self, run_block: RunBlock, base: ShardedBase) -> None:
        self._run_block = run_block
        self._base = base

    def __call__(
        self,
        block: TransformerBlock,
        x_TD: torch.Tensor,
        rotation: Rotation,
        documents: Documents,
        cache: KVCache | None,
    ) -> torch.Tensor:
        """`block(x)`. Its backward pass begins when the gradient of its output is there; by then
        all kernels of the block after it have been started."""
        base, layer = self._base, block.layer
        units = [*base.blocks, base.head]
        base.use(units[layer], then=units[layer + 1])
        output_TD = self._run_block(block, x_TD, rotation, documents, cache)
        if output_TD.requires_grad:
            before = units[layer - 1] if layer else None
            output_TD.register_hook(lambda _gradient: base.use(units[layer], then=before))
        return output_TD


def run_sharded(model: Transformer, base: ShardedBase) -> None:
    """Have the parts of `model` find their weights when they are called. Call it last of what
    changes how blocks run; none may run otherwise from then on."""
    model.run_block = RunSharded(model.run_block, base)
    model.tok_embeddings.register_forward_pre_hook(
        lambda *_: base.use(base.embedding, then=base.blocks[0])
    )
    model.output.register_forward_pre_hook(lambda *_: base.use(base.head))
