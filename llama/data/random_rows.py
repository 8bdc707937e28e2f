"""Rows of random tokens, for what is measured without a text."""

from __future__ import annotations

import torch

from llama.data.packing import PackedRow
from llama.data.types import Example


def random_rows(vocabulary: int, number: int, length: int, seed: int) -> list[PackedRow]:
    """`number` rows, each one document of `length` tokens, with its own label at every position."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (number, length), generator=generator).tolist()
    return [[Example(ids, ids, row)] for row, ids in enumerate(tokens, start=1)]
