"""Gradients where those of all passes are added up."""

from __future__ import annotations

import torch

from llama.fused.mirrored import Mirrored
from llama.fused.recorded import TOGETHER, add_as_they_come


def test_gradients_are_added_as_they_come() -> None:
    leaves = [torch.full((3,), float(n), requires_grad=True) for n in range(2 * TOGETHER + 5)]
    parts = [torch.full((3,), 0.5) for _ in leaves]
    add = add_as_they_come(leaves, parts)
    for factor in (1.0, 2.0):
        (factor * torch.stack(leaves).pow(2).sum()).backward()
        add()
    for n, (leaf, part) in enumerate(zip(leaves, parts, strict=True)):
        assert leaf.grad is None and part.eq(0.5 + 3 * 2 * n).all()


def test_a_tensor_that_takes_no_part_in_a_loss_hides_no_other() -> None:
    tensors = [torch.ones(3, requires_grad=True) for _ in range(3)]
    mirrored = Mirrored(tensors)
    mirrored.add_gradients((2 * tensors[1]).sum() + tensors[2].sum())
    assert [part.tolist() for part in mirrored.parts] == [[0.0] * 3, [2.0] * 3, [1.0] * 3]


def test_mirrors_of_what_lies_in_one_piece_do_too() -> None:
    flat = torch.zeros(20)
    tensors = [flat[4:10].view(2, 3), torch.zeros(5), flat[12:16]]
    mirrored = Mirrored(tensors)
    assert [piece.numel() for piece in mirrored.pieces] == [20, 5]
    for part in mirrored.parts:
        part.fill_(1.0)
    assert mirrored.pieces[0].nonzero().flatten().tolist() == [*range(4, 10), *range(12, 16)]
