"""`--sequence_parallel`: a model that works on its rank's share of each micro-batch."""

from __future__ import annotations

import torch

from llama.adapters.attach import adapters
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.traded import Traded
from llama.model.transformer import RunModel, Supervision, Transformer
from llama.parallel.sequence import SequenceParallel, Span


class RunOnShare:
    """Calls the model on this rank's tokens, their positions and labels, and the documents of the
    whole micro-batch. A cache is of whole sequences: with one, every rank computes all of it."""

    def __init__(self, run_model: RunModel, sequence: SequenceParallel, span: Span) -> None:
        self._run_model = run_model
        self._sequence = sequence
        self._span = span

    def __call__(
        self,
        model: Transformer,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        documents: Documents,
        labels: Supervision | None,
        cache: KVCache | None,
        last: bool,
    ) -> torch.Tensor:
        """What `Transformer.forward` says, of this rank's tokens."""
        if cache is None:
            whole = documents.boundaries[-1]
            own = self._sequence.own(whole)
            assert tokens_T.shape[0] == own.stop - own.start, "the batch is not this rank's share"
            self._span.start, self._span.whole = own.start, whole
        return self._run_model(model, tokens_T, positions_T, documents, labels, cache, last)


def run_on_share(model: Transformer, sequence: SequenceParallel) -> None:
    """Have `model` work on its share of each micro-batch's tokens, if there are several ranks to
    share them. Call it once what trains is there, before anything else changes how it runs."""
    if sequence.size == 1:
        return
    span = Span()
    for block in model.layers:
        block.attention.attend = Traded(sequence)  # type: ignore[union-attr]
    for _, adapter in adapters(model):
        adapter.span = span
    model.run_model = RunOnShare(model.run_model, sequence, span)
