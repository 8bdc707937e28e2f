"""What a run does without after a step that ran out of memory: `--checkpointing auto` of all that
it chose, every other setting of the graphs that passes are recorded as."""

from __future__ import annotations

from collections.abc import Callable

from llama.fused.captured import LAUNCHED, WORTH, RunCaptured
from llama.fused.keeping import summary
from llama.model.kept import Kept
from llama.model.loss import CHUNK_ELEMENTS
from llama.model.transformer import Transformer
from llama.notes import note

LESS = 0.9
"""The step down after a plan that failed, as a share of what it was made for."""
ANEW = "recorded passes are given up and recorded anew"
FEWEST_LOGITS = CHUNK_ELEMENTS // 16


class Lessening:
    """Has `model` do with less, one call after the other: without the graphs that were recorded,
    whose memory serves no other shape of batch; then with less kept; with the loss in smaller
    parts; and at last without any graphs. What is computed stays the same."""

    def __init__(self, model: Transformer, choice: Callable[[int], list[Kept]], room: int) -> None:
        """`choice` says what the blocks keep in so many bytes: `model` keeps that of `room`."""
        self._model, self._choice, self._room = model, choice, room

    def __call__(self, failures: int) -> bool:
        """To be called with the number of times that this step has run out of memory; False where
        there is nothing left to do without."""
        run = self._model.run_model
        served = run.forget() if isinstance(run, RunCaptured) else 0
        if served >= WORTH and failures == 1:
            done = ANEW
        elif self._keep_less():
            done = summary(self._model.kept)
        elif self._part_the_loss():
            done = f"the loss takes {self._model.output.elements:,} logits at a time"
        elif isinstance(run, RunCaptured) and run.stop():
            done = LAUNCHED
        else:
            return False
        note(f"checkpointing auto: a step ran out of memory and is taken again: {done}")
        return True

    def _keep_less(self) -> bool:
        """Choose for less room, until that is another choice."""
        model, before = self._model, self._model.kept
        least = self._choice(0)
        while model.kept == before and before != least:
            self._room = int(self._room * LESS)
            model.keep(self._choice(self._room))
        return model.kept != before

    def _part_the_loss(self) -> bool:
        head = self._model.output
        elements = head.elements or CHUNK_ELEMENTS
        if elements <= FEWEST_LOGITS:
            return False
        head.elements = elements // 2
        return True


class WithoutGraphs:
    """Has a model whose blocks keep what was asked for do without recorded passes: their memory
    serves no pass that is launched, as the first of each kind is."""

    def __init__(self, model: Transformer) -> None:
        self._model = model

    def __call__(self, failures: int) -> bool:
        """As `Lessening`: they are recorded anew where they have served for long, and else launched
        from then on."""
        run = self._model.run_model
        assert isinstance(run, RunCaptured)
        served = run.forget()
        if not served:
            return False
        done = ANEW
        if served < WORTH or failures > 1:
            run.stop()
            done = LAUNCHED
        note(f"a step ran out of memory and is taken again: {done}")
        return True
