"""Room for the gradients of tensors, laid out as the tensors themselves lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_FOREACH_ADD: Any = torch._foreach_add_  # type: ignore[attr-defined]


class Mirrored:
    """For each of `tensors` one of its size and type, in `parts`. Those that are parts of one piece
    of memory, as an optimizer lays out what it steps, have theirs in one piece too: so that all of
    them are added to, sent or scaled at once. What lies between them stays zero."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tuple(tensors)
        self.by_memory: dict[int, torch.Tensor] = {}
        """The address of each piece that `tensors` lie in, and the one-dimensional piece here."""
        self.parts: list[torch.Tensor] = []
        self.leaf = torch.zeros((), requires_grad=True)
        """Stands for all of `tensors` in autograd's graph: what adds to the pieces in its backward
        pass takes it as an input, and has none of them."""
        for tensor in tensors:
            assert tensor.is_contiguous(), "a transposed tensor has no flat form"
            memory = tensor.untyped_storage()
            piece = self.by_memory.get(memory.data_ptr())
            if piece is None:
                count = memory.nbytes() // tensor.element_size()
                piece = torch.zeros(count, dtype=tensor.dtype, device=tensor.device)
                self.by_memory[memory.data_ptr()] = piece
            start = tensor.storage_offset()
            self.parts.append(piece[start : start + tensor.numel()].view(tensor.shape))

    @property
    def pieces(self) -> list[torch.Tensor]:
        """In the order in which `tensors` come to them."""
        return list(self.by_memory.values())

    def zero_(self) -> None:
        for piece in self.pieces:
            piece.zero_()

    def add_gradients(self, loss: torch.Tensor) -> None:
        """Go back through `loss`, adding its gradients: here, or already by what takes `leaf`."""
        leaves = (self.leaf, *self._tensors)
        _, *found = torch.autograd.grad(loss, leaves, allow_unused=True)
        there = [(at, more) for at, more in zip(self.parts, found, strict=True) if more is not None]
        if there:
            _FOREACH_ADD(*map(list, zip(*there, strict=True)))
