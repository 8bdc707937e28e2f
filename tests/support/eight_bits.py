"""Rows that are hard to quantise, and what two ways to do it must agree on."""

from __future__ import annotations

import torch

CODES = (torch.int8, torch.float8_e4m3fn)
WIDTHS = (1, 33, 128, 300, 4500)
"""Whole tiles and groups, and parts of them; of the last a row has more groups than a program."""


def hard_rows(width: int) -> torch.Tensor:
    """Ordinary numbers, zeros, tiny ones, such as lie halfway between codes, NaN and infinity."""
    rows = torch.randn(8, width, generator=torch.Generator().manual_seed(width))
    rows[1] = 0
    rows[2] *= 1e-30
    rows[3] = torch.arange(width).remainder(32) / 2
    rows[3, 0] = 127
    rows[4] = torch.arange(width).remainder(448)
    rows[4, 0] = -448
    rows[5, width // 2] = float("nan")
    rows[6, -1] = float("-inf")
    return rows


def same_codes(
    found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]
) -> bool:
    """The scales, and the bytes of the codes where these are finite."""
    (codes, scales), (others, right) = found, expected
    finite = right.isfinite().all(dim=1)
    assert finite.tolist() == [True] * 5 + [False] * 2 + [True]
    return torch.equal(scales.nan_to_num(7.0), right.nan_to_num(7.0)) and torch.equal(
        codes[finite].view(torch.uint8), others[finite].view(torch.uint8)
    )
