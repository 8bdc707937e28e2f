"""All the places that a run is watched in, as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from llama.metrics.sinks.apart import Apart
from llama.metrics.sinks.kinds import KINDS
from llama.metrics.sinks.sink import Sink, Status, Watched
from llama.pages.sample import Sample

PATIENCE = 30.0
"""Seconds that a run waits at its end for what it has told to arrive everywhere."""


class Places:
    """Tells each place in turn, where there are any. Only one whose files are the run's own may
    raise, `OSError`: the disk fails under the run then."""

    def __init__(self) -> None:
        self._places: list[Sink | Apart] = []

    def open(
        self,
        names: Sequence[str],
        run: Watched,
        config: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        """Begin the run, or go on with it, in each place of `names`; `say` tells of those that
        fail."""
        for name in names:
            if name in KINDS:  # `none` is none
                make = partial(KINDS[name], run, config)
                self._places.append(make() if KINDS[name].OF_THE_RUN else Apart(name, make, say))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for place in self._places:
            place.scalars(step, values)

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        for place in self._places:
            place.histogram(step, name, values)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        for place in self._places:
            place.samples(step, samples)

    def end(self, status: Status, summary: Mapping[str, Any]) -> None:
        for place in self._places:
            place.end(status, summary)
        until = time.monotonic() + PATIENCE
        for place in self._places:
            if isinstance(place, Apart):
                place.wait(until)

    def how_to_look(self) -> list[str]:
        """A command or an address for each place that the run is to be seen in."""
        return [way for place in self._places if (way := place.how_to_look)]
