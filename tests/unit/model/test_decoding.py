"""Choosing tokens, and writing them with the cache."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from llama.model.decoding import Sampling, choose, decode, decode_without_cache
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.transformer import Transformer
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY, random_state

PROBABILITIES = torch.tensor([0.5, 0.3, 0.15, 0.05])
DRAWS = 4000
PROMPT = [5, 17, 3, 60]
NO_STOP: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(TINY).eval()
    made.load_state_dict(random_state(TINY))
    return made


def chosen(sampling: Sampling, draws: int = DRAWS) -> Counter[int]:
    generator = torch.Generator().manual_seed(sampling.seed)
    logits = PROBABILITIES.log()[[2, 0, 3, 1]]  # the order is not that of likelihood
    return Counter(choose(logits, sampling, generator) for _ in range(draws))


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
        cache = KVCache(TINY, 9, torch.float32, torch.device("cpu"))
        pieces = [
            model(
                part, torch.arange(start, start + len(part)), Documents((0, len(part))), None, cache
            )
            for start, part in ((0, tokens[:1]), (1, tokens[1:6]), (6, tokens[6:]))
        ]
    assert_close(torch.cat(pieces), expected, SMALL_MODEL)


def test_the_cache_holds_what_it_was_given_and_no_more() -> None:
    config = replace(TINY, n_layers=2)
    cache = KVCache(config, 3, torch.float32, torch.device("cpu"))
    first, second = (torch.full((n, TINY.n_kv_heads, TINY.head_dim), float(n)) for n in (2, 1))
    for layer in range(2):
        keys, values = cache.extend(layer, first, -first)
        assert torch.equal(keys, first) and torch.equal(values, -first)
    cache.advance(2)
    keys, _ = cache.extend(1, second, second)
    assert torch.equal(keys, torch.cat((first, second)))
    cache.advance(1)
    with pytest.raises(AssertionError, match="full"):
        cache.extend(0, second, second)


def test_the_last_logits_are_the_last_row_of_all(model: Transformer) -> None:
    tokens = torch.tensor(PROMPT)
    arguments = (tokens, torch.arange(4), Documents((0, 4)))
    with torch.no_grad():
        last, everything = model(*arguments, last=True), model(*arguments)
    assert last.shape == (1, TINY.vocab_size)
    assert_close(last[0], everything[-1], SMALL_MODEL)
