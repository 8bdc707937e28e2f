"""Passes that write one token of each of several texts, as CUDA graphs.

Such a pass launches about a thousand kernels, and each of them has so little to do that a GPU waits
for its host nearly all of the time. In a recorded pass all that changes from token to token lies on
the device: the tokens, and how many each sequence holds, of which positions, rows of the cache and
the mask over all of its room are computed (`SteppedCache`).

A graph is of a number of sequences, rounded up. The cache's rows that no sequence has stand for
those that there are too few of.

Shapes: M sequences, with their rounding up; N that the cache has room for; V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from llama.base.kinds import KINDS
from llama.fused.captured_inputs import Mode, is_watched, mode_of, shares_tokens, side_paths
from llama.fused.recorded import is_out_of_memory, recording
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache, SteppedCache
from llama.model.transformer import RunModel, Supervision, Transformer
from llama.notes import note
from llama.parallel.layers import ParallelLinear
from llama.parallel.sharded import is_sharded

FEWEST = 4
"""Sequences of a graph that has more than one."""
SPARE = 4
"""As texts end, graphs of up to so many times the sequences go on to serve: what weights cost to
read is the same for all, and to record anew for the last few tokens would take longer."""
FIRST = 3
"""The pass of a kind that is recorded: a recording takes as long as a few passes. The one before is
launched in the recorded form, which makes the kernels that are compiled when they are called."""
MOST = 16
"""Graphs of one cache."""


def rounded(count: int, most: int) -> int:
    """How many sequences stand for `count`, where there is room for `most`."""
    return min(most, count if count == 1 else max(FEWEST, 1 << (count - 1).bit_length()))


class _Recorded:
    """One pass as a graph."""

    def __init__(self, step: Callable[[], torch.Tensor], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with recording(self._graph, pool):
            self._logits_MV = step()

    def replay(self) -> torch.Tensor:
        """The logits, which the next call writes over."""
        self._graph.replay()
        return self._logits_MV


class _Steps:
    """What is recorded of one cache. It refers to the cache's memory and not to the cache, with
    which it is to end."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._memory = cache.memory
        self._parameters = list(model.parameters())
        self._places = self._found_places()
        self._paths = side_paths(model)
        sequences = cache.memory.shape[0]
        self._tokens_N = torch.zeros(sequences, dtype=torch.int64, device=cache.memory.device)
        self._held_N = torch.zeros_like(self._tokens_N)
        self._seen: Counter[tuple[int, Mode]] = Counter()
        self.recorded: dict[tuple[int, Mode], _Recorded] = {}
        self._pool: Any = None

    def fits(self, cache: KVCache) -> bool:
        """Whether cache and parameters still lie where they did, as a graph goes by addresses."""
        return cache.memory is self._memory and self._found_places() == self._places

    def _found_places(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._parameters]

    def logits(
        self,
        model: Transformer,
        run: RunModel,
        cache: KVCache,
        tokens_M: torch.Tensor,
        held_M: torch.Tensor,
    ) -> torch.Tensor | None:
        """Of one more token of each sequence of `cache`, `[M, V]`, or None where that is not
        recorded. OutOfMemoryError where memory does not hold a recording."""
        count = len(tokens_M)
        size = rounded(count, len(self._tokens_N))
        mode = mode_of(model, self._paths)
        fit = [of for of, as_ in self.recorded if size <= of <= SPARE * size and as_ == mode]
        size = min(fit, default=size)
        key = size, mode
        recorded = self.recorded.get(key)
        if recorded is None:
            self._seen[key] += 1
            if self._seen[key] < FIRST - 1 or len(self.recorded) == MOST:
                return None
        # What lay beyond the new ones is of places that the room has, and of rows that are free.
        self._tokens_N[:count].copy_(tokens_M)
        self._held_N[:count].copy_(held_M)
        if recorded is None:
            tokens, stepped = self._tokens_N[:size], SteppedCache(cache, self._held_N[:size])

            def step() -> torch.Tensor:
                added = stepped.step()
                return run(model, tokens, added.positions_T, added.documents, None, stepped, True)

            if self._seen[key] < FIRST:
                return step()[:count]
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            recorded = self.recorded[key] = _Recorded(step, self._pool)
        return recorded.replay()[:count].clone()


class RunDecoding:
    """Calls a model as `run_model` did, but for passes without gradient in which every sequence of
    a cache is given one token: from the third of a number of sequences on these are recorded ones.
    A cache that grew, and another one, has graphs of its own."""

    def __init__(self, model: Transformer) -> None:
        self._run = model.run_model
        self._steps: WeakKeyDictionary[KVCache, _Steps] = WeakKeyDictionary()
        self._records = True
        """Until memory did not hold a recording."""

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
        if cache is not None and labels is None and self._records and _is_step(model, cache):
            logits_MV = self._stepped(model, tokens_T, positions_T, cache)
            if logits_MV is not None:
                cache.advance()
                return logits_MV
        return self._run(model, tokens_T, positions_T, documents, labels, cache, last)

    def _stepped(
        self,
        model: Transformer,
        tokens_M: torch.Tensor,
        held_M: torch.Tensor,
        cache: KVCache,
    ) -> torch.Tensor | None:
        """The logits `[M, V]`, or None where the pass is to be launched. A pass that was broken off
        has written nothing that the launched one does not write."""
        steps = self._steps.get(cache)
        if steps is None or not steps.fits(cache):
            self._steps.pop(cache, None)
            steps = self._steps[cache] = _Steps(model, cache)
        try:
            return steps.logits(model, self._run, cache, tokens_M, held_M)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                reason = str(error).splitlines()[0]
                note(f"texts are not written by CUDA graphs: {reason}")
        self._records = False
        self._steps.clear()
        return None


def _is_step(model: Transformer, cache: KVCache) -> bool:
    added = cache.added
    every = added.one_each and not added.begins and added.first == 0
    return every and not (model.training or torch.is_grad_enabled() or is_watched(model))


def capture_decoding(model: Transformer) -> None:
    """Have `model` write with recorded passes, where all of it is on one GPU: ranks exchange within
    a pass. Frozen weights are of any form of the table, whose products training's graphs have too.
    Call it before `capture`, once adapters are attached."""
    weight = model.tok_embeddings.weight
    exchanges = model.tok_embeddings.tp.size > 1 or is_sharded(weight) or hasattr(weight, "ds_id")
    unknown = any(
        module.kind not in KINDS.values()
        for module in model.modules()
        if isinstance(module, ParallelLinear)
    )
    if weight.is_cuda and not (exchanges or shares_tokens(model) or unknown):
        model.run_model = RunDecoding(model)
