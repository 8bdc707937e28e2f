"""What passes between the stages of the data path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama.tokenizer.base import IGNORE

if TYPE_CHECKING:
    import torch  # Processes that only make tokens start without it, in a tenth of the time.


@dataclass(frozen=True)
class Example:
    """One document, tokenised. `labels[i]` is `input_ids[i]` where position i is supervised, else
    `IGNORE`; the shift by one happens when a batch is built."""

    input_ids: list[int]
    labels: list[int]
    row: int
    """The number of its row, as `llama.data.source` counts."""

    @property
    def supervised(self) -> int:
        """Positions that have a prediction and a label: position 0 is never predicted."""
        predicted = self.labels[1:]
        return len(predicted) - predicted.count(IGNORE)


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank: documents laid end to end with no padding.

    T is the total number of tokens, n the number of documents.

        tokens      [T] int64   a a a a b b b c c
        positions   [T] int64   0 1 2 3 0 1 2 0 1
        targets     [T] int64   the next token of the same document, IGNORE where not supervised
        boundaries  [n+1]       0 4 7 9

    Of ranks that share its tokens each has a slice of the first three, and the boundaries of all.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    boundaries: tuple[int, ...]
    supervised: int
    """How many targets are not IGNORE."""
    stream: int
    """Index of the micro-batch within the step, over all ranks: with the seed and the step it gives
    the dropout stream, so that any split over ranks and accumulation draws the same masks."""
