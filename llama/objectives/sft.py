"""Supervised fine-tuning: the cross-entropy of the tokens that are to be learnt, each predicted
from those before it in its own document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llama.data.columns import Columns
from llama.data.feed import model_inputs
from llama.data.prepare import Prepared, prepare
from llama.data.types import Batch
from llama.objectives.objective import Model
from llama.tokenizer.base import Template, Tokenizer


class SupervisedFineTuning:
    """`Objective` of rows that hold the answers to be learnt."""

    def prepare(
        self,
        paths: Sequence[Path],
        template: Template,
        tokenizer: Tokenizer,
        seq_len: int,
        pack: bool,
        columns: Columns = (),
    ) -> Prepared:
        return prepare(paths, template, tokenizer, seq_len, pack, columns=columns)

    def count(self, batch: Batch) -> int:
        """The supervised tokens."""
        return batch.supervised

    def loss(self, model: Model, batch: Batch, device: torch.device) -> torch.Tensor:
        """Over the supervised tokens."""
        return model(**model_inputs(batch, device))
