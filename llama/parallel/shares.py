"""How much of the parameters is this rank's, whatever ZeRO has done to them.

Under ZeRO-3 a partitioned parameter has no elements of its own between two uses: `numel()` is 0 and
`shape` is `[0]`. DeepSpeed keeps the whole's number of elements in `ds_numel`, and this rank's
share of them, filled up to one length on all ranks, in `ds_tensor`. How each stage cuts was read in
`runtime/zero/stage_1_and_2.py` and `partition_parameters.py` of 0.19.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

FLAT_ALIGNMENT = 2
"""ZeRO-1 and 2 fill the flat tensor of a group up to a multiple of this times the ranks."""


def whole_elements(parameters: Iterable[nn.Parameter]) -> int:
    """Elements of `parameters` as a run of one data-parallel rank would hold them."""
    return sum(_whole(parameter) for parameter in parameters)


def optimized_elements(groups: Iterable[Mapping[str, Any]], stage: int, ranks: int) -> int:
    """Elements whose float32 master and moments one rank of `ranks` is to hold, padding included,
    when the optimizer is given `groups`: all at ZeRO-0, an equal share of each group at 1 and 2,
    of each parameter at 3."""
    held = 0
    for group in groups:
        sizes = [_whole(parameter) for parameter in group["params"]]
        if stage == 0:
            held += sum(sizes)
        elif stage < 3:
            held += FLAT_ALIGNMENT * -(-sum(sizes) // (FLAT_ALIGNMENT * ranks))
        else:
            held += sum(-(-size // ranks) for size in sizes)
    return held


def own_values(parameter: Any) -> torch.Tensor:
    """What this rank holds of `parameter`: all of it, or its share under ZeRO-3 as a flat tensor
    without the padding, whose memory nobody has written."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    share = parameter.ds_tensor
    before = share.numel() * parameter.ds_zero_partition_rank
    return share[: max(0, min(share.numel(), parameter.ds_numel - before))]


def _whole(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
