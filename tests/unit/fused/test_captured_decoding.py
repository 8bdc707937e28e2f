"""Which passes that write a token are recorded, and that the recorded form of one computes what the
plain one does; the graphs themselves are for a GPU (tests/gpu/test_captured_decoding_on_gpu.py)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from llama.adapters.attach import adapters, switched_off
from llama.fused import captured_decoding
from llama.fused.captured_decoding import MOST, RunDecoding, capture_decoding, rounded
from llama.model.decoding import ROOM_AHEAD, Sampling, Session, decode_together
from llama.model.kv_cache import KVCache
from llama.model.transformer import Transformer, run_model
from tests.parity.test_packing import trained_model
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY

CPU = torch.device("cpu")
NO_STOP: frozenset[int] = frozenset()
PROMPTS = [[5, 17, 3, 60], [9], list(range(40, 61)), [1, 2], [5, 17, 3, 61], [30] * 9, [7, 8, 9]]
LIMIT = SMALL_MODEL
"""The same products of as many rows or up to three more, for which there may be other kernels,
and sums over the room that have as many terms beside zeros. Measured: 9 EPSILON, on AVX2."""


class Launched:
    """In the place of a recorded pass, which only a GPU has: launched anew each time."""

    def __init__(self, step: Callable[[], torch.Tensor], _pool: Any) -> None:
        self._step = step
        Launched.made += 1

    made = 0

    def replay(self) -> torch.Tensor:
        return self._step()


@pytest.fixture(autouse=True)
def _without_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(captured_decoding, "_Recorded", Launched)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    Launched.made = 0
    yield


class Both:
    """Two equal models, each with a cache of its own: one runs plainly, the other as captured. What
    is done to one is done to the other, and their logits are compared."""

    def __init__(self) -> None:
        self.models = [trained_model().eval() for _ in range(2)]
        self.run = RunDecoding(self.models[1])
        self.models[1].run_model = self.run
        self.caches = [KVCache(TINY, torch.float32, CPU) for _ in self.models]
        self.dice = torch.Generator().manual_seed(0)

    def each(self, action: Callable[[KVCache], None]) -> None:
        for cache in self.caches:
            action(cache)

    @torch.no_grad()
    def read(self, counts: list[int]) -> None:
        """So many random tokens of the last sequences."""
        tokens = torch.randint(TINY.vocab_size, (sum(counts),), generator=self.dice)
        found = []
        for model, cache in zip(self.models, self.caches, strict=True):
            added = cache.begin(counts)
            call = tokens, added.positions_T, added.documents
            found.append(model(*call, cache=cache, last=True))
        assert self.caches[0].lengths == self.caches[1].lengths
        assert_close(found[1], found[0], LIMIT)

    def open(self, counts: list[int]) -> None:
        """More sequences, with so many tokens."""
        self.each(lambda cache: cache.open(len(counts)))
        self.read(counts)

    def step(self, times: int = 1) -> None:
        """One token of each sequence."""
        for _ in range(times):
            self.read([1] * len(self.caches[0].lengths))

    @property
    def sizes(self) -> list[int]:
        """Of the graphs of the captured model's cache, in the order of recording."""
        return [size for size, _ in self.run._steps[self.caches[1]].recorded]


@pytest.fixture
def both() -> Both:
    made = Both()
    made.each(lambda cache: cache.reserve(8, 128))
    return made


def test_numbers_of_sequences_are_rounded_up() -> None:
    assert [rounded(n, 64) for n in (1, 2, 3, 4, 5, 8, 9, 33)] == [1, 4, 4, 4, 8, 8, 16, 64]
    assert [rounded(n, 6) for n in (1, 2, 5, 6)] == [1, 4, 6, 6]
    assert rounded(2, 3) == 3
    assert all(len({rounded(n, most) for n in range(1, most + 1)}) < MOST for most in (8, 100, 999))


def test_recorded_passes_compute_what_plain_ones_do(both: Both) -> None:
    """With rows of no sequence beside, from the third of a number of sequences on."""
    both.open([4, 1, 21])
    both.step(2)
    assert both.sizes == []
    both.step()
    assert both.sizes == [4] and Launched.made == 1
    both.step(4)
    assert both.sizes == [4] and Launched.made == 1


def test_sequences_come_and_go_between_passes(both: Both) -> None:
    """One graph serves as many as it has room for, wherever they lie."""
    both.open([4, 1, 21, 3])
    both.step(3)
    both.each(lambda cache: cache.close(1))
    both.step(2)
    both.each(lambda cache: cache.keep(0, 3))
    both.step(2)
    both.open([7])
    both.step(2)
    assert both.sizes == [4] and Launched.made == 1
    both.open([2, 2])
    both.step(3)
    both.each(lambda cache: cache.close(0))
    both.each(lambda cache: cache.close(0))
    both.each(lambda cache: cache.close(0))
    both.step()
    assert both.sizes == [4, 8]


def test_a_graph_serves_the_last_few_of_its_texts(both: Both) -> None:
    """Down to a fourth of its size, as often as there is none of their own."""
    both.open([4, 1, 21, 3, 2, 6])
    both.step(3)
    for _ in range(4):
        both.each(lambda cache: cache.close(0))
        both.step(3)
    assert both.sizes == [8]
    both.each(lambda cache: cache.close(0))
    both.step(3)
    assert both.sizes == [8, 1] and Launched.made == 2


def test_what_is_left_behind_is_seen_by_no_other(both: Both) -> None:
    """NaN among the keys of a text that left would go through any mask."""
    both.open([4, 5, 21])
    both.step(3)

    def spoil(cache: KVCache) -> None:
        for layer in (*cache._keys, *cache._values):
            layer[2, 6:] = layer[2, 6:].where(layer[2, 6:] == 0, torch.nan)
        cache.keep(2, 6)

    both.each(spoil)
    both.step()
    both.each(lambda cache: cache._keys[0][2].fill_(torch.nan))
    both.each(lambda cache: cache.close(2))
    both.step()
    both.open([3])
    both.step(2)
    assert Launched.made == 1


def test_a_cache_that_grew_is_recorded_anew(both: Both) -> None:
    both.open([4, 1, 120])
    both.step(8)
    assert both.sizes == [4]
    both.step()  # the 129th token
    assert both.caches[1].memory.shape[1] > 128 and both.sizes == []
    both.step(2)
    assert both.sizes == [4] and Launched.made == 2


def test_a_pass_with_adapters_is_never_one_without(both: Both) -> None:
    both.open([4, 1, 21])
    both.step(3)
    for made in (2, 2):
        with switched_off(both.models[0]), switched_off(both.models[1]):
            both.step(3)
        both.step(3)
        assert Launched.made == made and both.sizes == [4, 4]
    modes = [mode for _, mode in both.run._steps[both.caches[1]].recorded]
    count = len(list(adapters(both.models[1])))
    assert set(modes[1].scales) == {0.0} and 0.0 not in modes[0].scales
    assert all(len(mode.scales) == count and not mode.trains for mode in modes)


def test_parameters_that_were_moved_are_recorded_anew(both: Both) -> None:
    both.open([4, 1, 21])
    both.step(3)
    _, adapter = next(adapters(both.models[1]))
    adapter.a.data = adapter.a.data.clone()  # type: ignore[union-attr]
    both.step(3)
    assert both.sizes == [4] and Launched.made == 2


def test_what_is_no_such_pass_is_launched(both: Both) -> None:
    """Texts that begin, a part of the texts, more tokens than one; and while gradients are asked
    for, or something watches the blocks."""
    both.open([1, 1])
    for _ in range(4):
        both.read([2, 1])
        both.read([1])
    model, cache = both.models[1], both.caches[1]

    def step() -> torch.Tensor:
        added = cache.begin([1, 1])
        tokens = torch.zeros(2, dtype=torch.int64)
        return model(tokens, added.positions_T, added.documents, cache=cache)

    for _ in range(4):
        assert step().requires_grad
    with torch.no_grad():
        model.train()
        for _ in range(4):
            step()
        model.eval()
        watch = model.layers[0].register_forward_hook(lambda *_: None)
        for _ in range(4):
            step()
        watch.remove()
        assert len(both.run._steps) == Launched.made == 0
        for _ in range(3):
            step()
    assert Launched.made == 1


def test_memory_that_holds_no_recording_ends_it(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def full(*_: Any) -> None:
        tried.append(1)
        # So a capture ends in which memory ran out.
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(captured_decoding, "_Recorded", full)
    both.open([4, 1, 21])
    both.step(6)
    assert tried == [1] and len(both.run._steps) == 0


def test_what_a_library_does_not_record_is_launched_and_said(
    both: Both, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(captured_decoding, "_Recorded", broken)
    both.open([4, 1, 21])
    both.step(6)
    said = capsys.readouterr().err
    assert said.count("not written by CUDA graphs: operation not permitted") == 1, said
    assert "more of it" not in said and len(both.run._steps) == 0


def test_graphs_end_with_their_cache(both: Both) -> None:
    both.open([4, 1, 21])
    both.step(3)
    assert len(both.run._steps) == 1
    both.caches.clear()
    gc.collect()
    assert len(both.run._steps) == 0


def test_there_are_no_more_graphs_than_so_many(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_decoding, "MOST", 1)
    both.open([4, 1, 21])
    both.step(3)
    both.open([2, 3])
    both.step(4)
    assert both.sizes == [4] and Launched.made == 1


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_texts_are_those_of_plain_passes(both: Both, batch: int) -> None:
    """No two tokens are so near to one another here that rounding could choose between them. Room
    is made at once, so that nothing is recorded twice."""
    plain, ours = (
        {
            text.index: text.tokens
            for text in decode_together(model, PROMPTS, 20, NO_STOP, Sampling(), batch)
        }
        for model in both.models
    )
    assert ours == plain and len(ours) == len(PROMPTS)
    sizes = {rounded(n, min(batch, len(PROMPTS))) for n in range(1, 1 + batch)}
    assert 0 < Launched.made <= len(sizes)


def test_a_conversation_has_graphs_for_as_long_as_it_lasts(both: Both) -> None:
    def talk(model: Transformer) -> list[list[int]]:
        session = Session(model)
        ids, said = [5, 17, 3, 60], []
        for _ in range(3):
            said.append(list(session.answer(ids, 12, NO_STOP, Sampling())))
            ids = [*ids, *said[-1][:7], 11, 12]
        return said

    assert talk(both.models[1]) == talk(both.models[0])
    assert Launched.made == 1


def test_room_is_made_ahead_and_grows(both: Both) -> None:
    model = both.models[1]
    tokens = ROOM_AHEAD + 128
    texts = list(decode_together(model, [[5, 17]], tokens, NO_STOP, Sampling(), 1))
    assert len(texts[0].tokens) == tokens and Launched.made == 2


def test_a_model_without_a_gpu_is_left_as_it_is() -> None:
    model = trained_model()
    capture_decoding(model)
    assert model.run_model is run_model
