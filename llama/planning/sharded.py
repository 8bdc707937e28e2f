"""What a step holds of a base that is cut over data-parallel ranks (`llama/parallel/sharded.py`):
this rank's shares and the rooms of some blocks all the time, embedding and head while in use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from llama.model.transformer import Transformer
from llama.parallel.sharded import rooms, share_bytes

Room = Callable[[int, torch.dtype, str], torch.Tensor]
"""Takes memory for so many elements of a type, counted as a kind."""


class SharedBase:
    """Told of a step's course; holds rooms of the sizes that the base's units have. `ranks` hold
    the base together, and this is one of them."""

    def __init__(self, model: Transformer, ranks: int, room: Room) -> None:
        self._room, self._ranks = room, ranks
        self._last = len(model.layers) - 1
        blocks = [_frozen(block) for block in model.layers]
        ends = list(dict.fromkeys([model.tok_embeddings.weight, model.output.weight]))
        units = [*blocks, *([end] for end in ends)]
        self.cut = {parameter for unit in units for parameter in unit}
        """What is computed with in those rooms, and lies nowhere else."""
        shares = sum(self._share(unit) for unit in units)
        most = max(map(self._share, blocks)) * ranks
        self._held = [room(shares, torch.uint8, "weights")]
        self._held += [room(most, torch.uint8, "buckets") for _ in range(rooms(len(blocks)))]
        self._vocabulary = self._share(ends[:1]) * ranks
        self._passing: torch.Tensor | None = None

    def begin(self) -> None:
        """Of a forward pass: the embedding comes."""
        self._passing = self._room(self._vocabulary, torch.uint8, "buckets")

    def begin_block(self, layer: int) -> None:
        """Of its forward pass: the embedding goes, and with the last block the head comes."""
        if layer == 0:
            self._passing = None
        if layer == self._last:
            self.begin()

    def end_block(self, layer: int, output: torch.Tensor) -> None:
        """Of its forward pass. The head goes when the last block's backward pass begins."""
        if layer == self._last and output.requires_grad:
            output.register_hook(lambda _gradient: setattr(self, "_passing", None))

    def _share(self, unit: list[nn.Parameter]) -> int:
        return share_bytes((parameter.nbytes for parameter in unit), self._ranks)


def _frozen(block: nn.Module) -> list[nn.Parameter]:
    """What of a block is the base's."""
    return [p for name, p in block.named_parameters() if ".lora." not in name]
