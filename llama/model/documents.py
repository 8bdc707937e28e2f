"""Where the documents of a batch begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch


class Documents:
    """The bounds of N documents laid end to end: `boundaries` is 0, then the end of each."""

    def __init__(self, boundaries: Sequence[int]) -> None:
        assert len(boundaries) >= 2 and boundaries[0] == 0, "boundaries begin at 0"
        self.boundaries = tuple(boundaries)
        self.lengths = [b - a for a, b in pairwise(boundaries)]
        self.longest = max(self.lengths)
        self.uniform = len(set(self.lengths)) == 1
        self._ends: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def ends_on(self, device: torch.device) -> torch.Tensor:
        """The boundaries as int32 `[N + 1]` on `device`; copied there once for all layers."""
        if self._ends is None or self._ends.device != device:
            self._ends = torch.tensor(self.boundaries, dtype=torch.int32, device=device)
        return self._ends
