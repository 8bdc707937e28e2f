"""The passes of an optimizer step, taken again with less kept where memory ran out in them.

Until the gradients of all micro-batches are there nothing has passed between data-parallel ranks:
one whose memory ran out takes its passes again by itself, and the others wait for it where
gradients are summed. Ranks that share a model or its tokens exchange within a pass, and take none
again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

KeepLess = Callable[[int], bool]
"""Is told how often a step has run out of memory by now; has less kept and gives True, or False
where no less can be."""
T = TypeVar("T")


@dataclass(frozen=True)
class Room:
    """Memory that comes to be taken once passes are through, when no step can be taken again."""

    nbytes: Callable[[], int]
    device: torch.device

    def check(self) -> None:
        """`torch.OutOfMemoryError` where there is none."""
        torch.empty(self.nbytes(), dtype=torch.uint8, device=self.device)


def begun_again(attempt: Callable[[], T], keep_less: KeepLess) -> T:
    """What `attempt` gives, begun again after each `torch.OutOfMemoryError` once there is less to
    keep. Raises the last one where there is not."""
    failures = 0
    while True:
        try:
            return attempt()
        except torch.OutOfMemoryError as error:
            said = str(error)  # and not the error: its frames hold the activations
        failures += 1
        if not keep_less(failures):
            raise torch.OutOfMemoryError(said)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
