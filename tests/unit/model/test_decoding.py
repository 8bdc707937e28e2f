"""Choosing tokens, and writing them with the cache."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama.model.decoding import (
    Sampling,
    Session,
    Written,
    choose,
    decode,
    decode_together,
    decode_without_cache,
)
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.transformer import Transformer
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY, random_state

PROBABILITIES = torch.tensor([0.5, 0.3, 0.15, 0.05])
DRAWS = 4000
PROMPT = [5, 17, 3, 60]
NO_STOP: frozenset[int] = frozenset()
CPU = torch.device("cpu")
RAGGED = [[5, 17, 3, 60], [9], list(range(40, 61)), [1, 2], [5, 17, 3, 61], [30] * 9, [7, 8, 9]]


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(TINY).eval()
    made.load_state_dict(random_state(TINY))
    return made


def read(model: Transformer, cache: KVCache, texts: list[torch.Tensor]) -> torch.Tensor:
    """The logits of all of `texts`, added to the last sequences of `cache`."""
    added = cache.begin([len(text) for text in texts])
    return model(torch.cat(texts), added.positions_T, added.documents, cache=cache)


def together(model: Transformer, sampling: Sampling, batch: int, **more: Any) -> dict[int, Written]:
    options = {"stop_ids": NO_STOP, "max_new_tokens": 20} | more
    found = list(decode_together(model, RAGGED, sampling=sampling, batch=batch, **options))
    assert len(found) == len(RAGGED)
    return {done.index: done for done in found}


def chosen(sampling: Sampling, draws: int = DRAWS) -> Counter[int]:
    generator = torch.Generator().manual_seed(sampling.seed)
    logits = PROBABILITIES.log()[[2, 0, 3, 1]]  # the order is not that of likelihood
    return Counter(choose(logits, sampling, generator) for _ in range(draws))


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40, 1e-45, 1e-300])
def test_a_temperature_near_0_takes_the_likeliest(temperature: float) -> None:
    assert chosen(Sampling(temperature), 3) == {1: 3}
    logits = torch.tensor([-3e4, 2e4, 1.9e4])
    assert choose(logits, Sampling(temperature), torch.Generator()) == 1


def assert_drawn(share: float, probability: float) -> None:
    """Within five deviations of chance: whatever numbers this CPU's generator gives."""
    deviation = (probability * (1 - probability) / DRAWS) ** 0.5
    assert abs(share - probability) < 5 * deviation


def test_temperature_zero_takes_the_likeliest() -> None:
    assert chosen(Sampling(), 3) == {1: 3}


def test_temperature_one_draws_by_probability() -> None:
    counts = chosen(Sampling(temperature=1.0))
    for token, probability in {2: 0.05, 0: 0.15, 3: 0.3, 1: 0.5}.items():
        assert_drawn(counts[token] / DRAWS, probability)


def test_temperature_sharpens_and_flattens() -> None:
    """To the probabilities' powers of 1 / temperature, over their sum."""
    for temperature in (0.25, 100.0):
        powers = PROBABILITIES.double() ** (1 / temperature)
        share = chosen(Sampling(temperature=temperature))[1] / DRAWS
        assert_drawn(share, float(powers[0] / powers.sum()))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, {1}), (0.49, {1}), (0.51, {1, 3}), (0.94, {1, 3, 0}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_holds_it(top_p: float, kept: set[int]) -> None:
    assert set(chosen(Sampling(temperature=1.0, top_p=top_p))) == kept


def test_top_p_holds_after_the_temperature() -> None:
    """At temperature 0.25 the likeliest alone has more than 0.85."""
    assert set(chosen(Sampling(temperature=0.25, top_p=0.8), 200)) == {1}


def test_a_seed_gives_one_text(model: Transformer) -> None:
    def text(seed: int) -> list[int]:
        return list(decode(model, PROMPT, 20, NO_STOP, Sampling(1.0, 0.95, seed)))

    assert text(0) == text(0) != text(1)


def test_the_default_generator_is_left_alone(model: Transformer) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(decode(model, PROMPT, 5, NO_STOP, Sampling(1.0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_cache_changes_nothing(model: Transformer) -> None:
    cached = list(decode(model, PROMPT, 30, NO_STOP, Sampling()))
    assert cached == decode_without_cache(model, PROMPT, 30)


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(model: Transformer) -> None:
    text = list(decode(model, PROMPT, 30, NO_STOP, Sampling()))
    stop = text[7]
    until = text[: text.index(stop)]
    assert list(decode(model, PROMPT, 30, frozenset({stop}), Sampling())) == until


def test_a_text_is_no_longer_than_asked_for(model: Transformer) -> None:
    assert len(list(decode(model, [1], 3, NO_STOP, Sampling()))) == 3


def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(model: Transformer) -> None:
    """The cache after 1, then 5, then 3 tokens."""
    tokens = torch.arange(9) * 7
    with torch.no_grad():
        expected = model(tokens, torch.arange(9), Documents((0, 9)))
        cache = KVCache(TINY, torch.float32, torch.device("cpu"))
        cache.open(1)
        pieces = [read(model, cache, [part]) for part in (tokens[:1], tokens[1:6], tokens[6:])]
    assert_close(torch.cat(pieces), expected, SMALL_MODEL)


def test_the_cache_holds_what_it_was_given_and_no_more() -> None:
    cache = KVCache(replace(TINY, n_layers=2), torch.float32, CPU)

    def added(layer: int, value: float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        new = torch.full((count, TINY.n_kv_heads, TINY.head_dim), value)
        return cache.extend(layer, new, -new)

    cache.open(1)
    cache.begin([2])
    for layer in range(2):
        keys, values = added(layer, 2.0, 2)
        assert keys.shape[:2] == (1, 2) and torch.equal(keys, -values) and bool((keys == 2.0).all())
    cache.advance()
    cache.begin([100])  # more than the room that was made at first
    keys, _ = added(1, 1.0, 100)
    assert keys[0, :, 0, 0].tolist() == [2.0] * 2 + [1.0] * 100
    cache.advance()
    cache.keep(0, 1)
    cache.begin([1])
    assert added(1, 3.0, 1)[0][0, :, 0, 0].tolist() == [2.0, 3.0]


def test_a_sequence_that_leaves_gives_its_place_to_the_last() -> None:
    cache = KVCache(TINY, torch.float32, CPU)
    cache.open(3)
    cache.begin([3, 1, 2])
    marks = torch.tensor([7.0] * 3 + [8.0] + [9.0] * 2)
    new = marks[:, None, None].expand(-1, TINY.n_kv_heads, TINY.head_dim)
    cache.extend(0, new, new)
    cache.advance()
    cache.close(0)
    assert cache.lengths == [2, 1]
    cache.open(1)
    added = cache.begin([1, 1, 1])
    keys, _ = cache.extend(0, new[:3] * 10, new[:3])
    assert keys[..., 0, 0].tolist() == [[9.0, 9.0, 70.0], [8.0, 70.0, 0.0], [70.0, 0.0, 0.0]]
    assert added.mask is not None
    assert (added.mask[:, 0, 0] == 0).tolist() == [
        [True, True, True],
        [True, True, False],
        [True, False, False],
    ]


def test_the_last_logits_are_the_last_row_of_all(model: Transformer) -> None:
    tokens = torch.tensor(PROMPT)
    arguments = (tokens, torch.arange(4), Documents((0, 4)))
    with torch.no_grad():
        last, everything = model(*arguments, last=True), model(*arguments)
    assert last.shape == (1, TINY.vocab_size)
    assert_close(last[0], everything[-1], SMALL_MODEL)


def test_sequences_of_a_batch_see_themselves_alone(model: Transformer) -> None:
    """Read together, then longer by other numbers of tokens, then by one: the logits of each are
    those of its own text, read at once."""
    parts = [[3, 1, 5], [4, 2, 1], [1, 1, 1], [1, 1, 1]]  # of each text at each pass
    texts = [torch.arange(10 * i, 10 * i + 9) for i in range(3)]
    given = [0, 0, 0]
    cache = KVCache(TINY, torch.float32, CPU)
    cache.open(3)
    with torch.no_grad():
        for counts in parts:
            new = [text[n : n + c] for text, n, c in zip(texts, given, counts, strict=True)]
            logits = read(model, cache, new).split(counts)
            given = [n + c for n, c in zip(given, counts, strict=True)]
            for text, length, found in zip(texts, given, logits, strict=True):
                whole = model(text[:length], torch.arange(length), Documents((0, length)))
                assert_close(found, whole[-len(found) :], SMALL_MODEL)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_texts_written_together_are_those_written_alone(model: Transformer, batch: int) -> None:
    """With more prompts than places too, and texts that end at different tokens. No two tokens are
    so near to one another here that rounding could choose between them."""
    alone = [list(decode(model, prompt, 20, NO_STOP, Sampling())) for prompt in RAGGED]
    assert [x.tokens for _, x in sorted(together(model, Sampling(), batch).items())] == alone
    stop = frozenset(text[3 + 2 * i] for i, text in enumerate(alone))
    for index, done in together(model, Sampling(), batch, stop_ids=stop).items():
        expected = list(decode(model, RAGGED[index], 20, stop, Sampling()))
        assert done == Written(index, expected, stopped=len(expected) < 20)


def test_what_is_drawn_does_not_depend_on_what_is_beside_it(model: Transformer) -> None:
    sampling = Sampling(1.0, 0.9, 5)
    for index, done in together(model, sampling, 4).items():
        assert done.tokens == list(decode(model, RAGGED[index], 20, NO_STOP, sampling))


def test_prompts_beyond_what_is_read_at_once_wait(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = together(model, Sampling(), 7)
    monkeypatch.setattr("llama.model.decoding.READ_AT_ONCE", 6)
    sizes = watched(model, monkeypatch)
    assert together(model, Sampling(), 7) == expected
    assert sizes[0] == 5 and max(sizes) == len(RAGGED[2])


def watched(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass from now on reads."""
    sizes: list[int] = []
    forward = model.forward

    def counted(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes.append(len(tokens))
        return forward(tokens, *args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    return sizes


def test_a_session_reads_a_conversation_once(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an answer was left in the middle, and where what was said before is changed."""

    def fresh(ids: list[int]) -> list[int]:
        return list(decode(model, ids, 6, NO_STOP, Sampling()))

    first = [*PROMPT, *fresh(PROMPT)[:3], 11, 12]
    changed = [*PROMPT[:2], 90, 91]
    expected = [fresh(ids) for ids in (first, changed, changed)]
    session = Session(model)
    sizes = watched(model, monkeypatch)
    answer = session.answer(PROMPT, 6, NO_STOP, Sampling())
    assert [next(answer) for _ in range(3)] == first[4:7]
    answer.close()
    assert sizes == [4, 1, 1]
    for ids, new, text in zip((first, changed, changed), (3, 2, 1), expected, strict=True):
        sizes.clear()
        assert list(session.answer(ids, 6, NO_STOP, Sampling())) == text
        assert sizes == [new, 1, 1, 1, 1, 1]
