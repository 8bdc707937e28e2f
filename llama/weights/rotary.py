"""The two layouts of the rows of wq and wk (and of their biases, and of LoRA's B on them).

Meta and GGUF keep a rotary pair in adjacent rows ("interleaved"); this model, as Hugging Face's,
keeps the first members of all pairs of a head, then the second ones ("halves"). With E the head
dimension and i < E/2: row h*E + i in halves is row h*E + 2i interleaved, and row h*E + E/2 + i is
row h*E + 2i + 1. A wrong layout loads cleanly and writes garbage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def is_rotary(native: str) -> bool:
    """Whether the rows of this weight or bias follow the rotary layout."""
    return ".attention.wq." in native or ".attention.wk." in native


def interleaved_to_halves(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """`[heads * E, ...]` from adjacent pairs to two halves per head."""
    pairs = tensor.reshape(-1, head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def halves_to_interleaved(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The inverse of `interleaved_to_halves`."""
    halves = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def read_halves(
    read_rows: Callable[[int, int], torch.Tensor], start: int, length: int, head_dim: int
) -> torch.Tensor:
    """Rows `[start, start + length)` in halves, from `read_rows(start, length)` of interleaved
    ones. A single row is read alone; of several, whole heads are read, since a head's rows change
    places only among themselves."""
    if length == 1:
        head, row = divmod(start, head_dim)
        second, pair = divmod(row, head_dim // 2)
        return read_rows(head * head_dim + 2 * pair + second, 1)
    first = start // head_dim * head_dim
    end = -(-(start + length) // head_dim) * head_dim
    heads = interleaved_to_halves(read_rows(first, end - first), head_dim)
    return heads.narrow(0, start - first, length)
