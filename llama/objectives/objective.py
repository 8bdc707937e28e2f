"""What every objective is asked: how rows become examples, and what a batch's loss is.

A kind is one file of this folder with a class of these methods, and one line in `kinds.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from llama.data.columns import Columns
from llama.data.prepare import Prepared
from llama.data.types import Batch
from llama.tokenizer.base import Template, Tokenizer

Model = Callable[..., torch.Tensor]
"""A `Transformer`, or DeepSpeed's engine around one."""


class Objective(Protocol):
    """What is learnt from the data."""

    def prepare(
        self,
        paths: Sequence[Path],
        template: Template,
        tokenizer: Tokenizer,
        seq_len: int,
        pack: bool,
        columns: Columns = (),
    ) -> Prepared:
        """The examples of the files and folders at `paths`, `columns` of their rows renamed,
        checked and packed into rows of `seq_len` tokens. Raises `UserError` with all that is wrong
        with them."""
        ...

    def count(self, batch: Batch) -> int:
        """Over how many terms the batch's loss is a sum. What is minimised is the sum over a whole
        step by its count, so that no split into batches or ranks changes it; the count is asked
        before the first forward pass, since each backward pass is divided by that of all ranks."""
        ...

    def loss(self, model: Model, batch: Batch, device: torch.device) -> torch.Tensor:
        """The summed loss of one micro-batch, a float32 scalar."""
        ...
