"""Signs of life from inside a step, which may take long: a rank's watchdog hears of every block."""

from __future__ import annotations

import torch

from llama.files import life
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.rope import Rotation
from llama.model.transformer import RunBlock, Transformer, TransformerBlock


def show_life(model: Transformer) -> None:
    """Have a sign of life shown as `model` is called, and as each of its blocks is begun, forwards
    and backwards, in whatever form it runs. No hook is put on a block: a fused one calls none of
    its modules, and a pass that was recorded calls none of its blocks. What `model.run_model` is
    stays to be seen: who frees memory asks it to forget what it has recorded."""
    model.run_block = _Alive(model.run_block)

    def called(*_: object) -> None:
        life.show()

    model.register_forward_pre_hook(called)


class _Alive:
    """Calls blocks as `run_block` does, with a sign before each forward and each backward pass."""

    def __init__(self, run_block: RunBlock) -> None:
        self._run_block = run_block

    def __call__(
        self,
        block: TransformerBlock,
        x_TD: torch.Tensor,
        rotation: Rotation,
        documents: Documents,
        cache: KVCache | None,
    ) -> torch.Tensor:
        life.show()
        output_TD = self._run_block(block, x_TD, rotation, documents, cache)
        if output_TD.requires_grad:  # its gradient is there: the block is next, and may recompute
            output_TD.register_hook(lambda _gradient: life.show())
        return output_TD
