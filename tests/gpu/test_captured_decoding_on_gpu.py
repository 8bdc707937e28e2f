"""Tokens written by CUDA graphs against the same passes launched one kernel after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

from llama.adapters.attach import adapters, attach, initialise, switched_off
from llama.assembly.model import build_model
from llama.base.kinds import KINDS
from llama.fused.captured import capture
from llama.fused.captured_decoding import RunDecoding, _Recorded, capture_decoding
from llama.fused.install import install
from llama.kernels.products import compute_dtype
from llama.model.config import LINEARS
from llama.model.decoding import Sampling, decode_together
from llama.model.kv_cache import KVCache
from llama.model.transformer import Transformer
from llama.settings import LoRAOptions
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.gpu.test_kernels_on_gpu import CPU, CUDA, GROUPED, difference, model
from tests.support.skips import GPU, PACKAGES, needs_gpus, skip

pytestmark = [
    pytest.mark.gpu,
    needs_gpus(),
]

NO_STOP: frozenset[int] = frozenset()
LOGITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest difference of the logits of two blocks, as a norm: attention with a mask is another
kernel than without, and products of other numbers of rows are; the results are rounded to the type
after each of some ten operations. In float32 a hundred times what was to be expected."""
EIGHT_BITS = 1e-1
"""Of products that round their input to eight bits: a last digit of bf16 tips some over."""
PROMPTS = [[5, 17, 3, 60], [9], list(range(40, 61)), [1, 2], [5, 17, 3, 61], [30] * 9, [7, 8, 9]]

Turn = Callable[[KVCache], object]
TURNS: dict[str, tuple[Turn, int]] = {
    "three of other lengths": (lambda cache: None, 6),
    "one left": (lambda cache: cache.close(0), 3),
    "one is shorter": (lambda cache: cache.keep(0, 2), 3),
    "one alone": (lambda cache: cache.close(1), 5),
}
"""What is done to the cache, and how many tokens are then given to each of its sequences."""


@torch.no_grad()
def forced(made: Transformer, adapters_off: bool = False) -> list[torch.Tensor]:
    """The logits of each pass over the same random tokens: three texts read, then `TURNS`, then as
    many that the cache grows; with `adapters_off` every fourth pass without adapters."""
    weight, dice = made.tok_embeddings.weight, torch.Generator().manual_seed(0)
    cache = KVCache(made.config, compute_dtype(weight), CUDA)
    cache.reserve(4, 64)
    cache.open(3)
    found = []

    def read(counts: list[int]) -> None:
        tokens = torch.randint(made.config.vocab_size, (sum(counts),), generator=dice).to(CUDA)
        added = cache.begin(counts)
        found.append(
            made(tokens, added.positions_T, added.documents, cache=cache, last=True).float()
        )

    read([4, 1, 21])
    for turn, times in (*TURNS.values(), (lambda cache: None, 64)):
        turn(cache)
        for number in range(times):
            if adapters_off and number % 4 == 3:
                with switched_off(made):
                    read([1] * len(cache.lengths))
            else:
                read([1] * len(cache.lengths))
    return found


def assert_alike(found: list[torch.Tensor], expected: list[torch.Tensor], limit: float) -> None:
    """And where another token would be chosen, rounding could have chosen so."""
    apart = [difference(ours, plain) for ours, plain in zip(found, expected, strict=True)]
    print(f"\n  logits apart by {max(apart):.1e}", end="")
    assert max(apart) <= limit
    same = 0
    for ours, plain in zip(found, expected, strict=True):
        chosen = plain.gather(1, ours.argmax(dim=1, keepdim=True)).squeeze(1)
        best = plain.amax(dim=1)
        assert bool((best - chosen <= 2 * limit * plain.abs().amax()).all())
        same += int((best == chosen).sum())
    print(f", {same} of {sum(map(len, found))} tokens the same", end="")


def captured(made: Transformer) -> RunDecoding:
    capture_decoding(made)
    assert isinstance(made.run_model, RunDecoding)
    return made.run_model


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A 1 for each replay from now on."""
    replay, calls = _Recorded.replay, []

    def noted(self: _Recorded) -> torch.Tensor:
        calls.append(1)
        return replay(self)

    monkeypatch.setattr(_Recorded, "replay", noted)
    return calls


@pytest.mark.parametrize("dtype", LOGITS, ids=str)
def test_captured_passes_give_what_launched_ones_do(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernels as they are where nothing is compiled, as `generate` has them."""
    made = model(dtype, torch.bfloat16).eval()
    expected = forced(made)
    captured(made)
    replays = counted(monkeypatch)
    assert_alike(forced(made), expected, LOGITS[dtype])
    assert len(replays) > 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_they_do_with_compiled_kernels(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, compiled: None
) -> None:
    """As training has them: beneath captured passes of training, and without dropout."""
    made = model(dtype, torch.bfloat16)
    for _, adapter in adapters(made):
        vars(adapter)["dropout"] = 0.2
    assert install(made) is None
    expected = forced(made.eval())
    captured(made)
    assert capture(made.train()) is None
    replays = counted(monkeypatch)
    assert_alike(forced(made.eval()), expected, LOGITS[dtype])
    assert len(replays) > 60


@pytest.mark.parametrize("dtype", LOGITS, ids=str)
def test_adapters_are_on_and_off_as_they_are_switched(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model(dtype, torch.bfloat16).eval()
    expected, all_on = forced(made, adapters_off=True), forced(made)
    assert difference(expected[4], all_on[4]) > 2 * LOGITS[dtype], "else it would show nothing"
    captured(made)
    replays = counted(monkeypatch)
    assert_alike(forced(made, adapters_off=True), expected, LOGITS[dtype])
    assert len(replays) > 50


def test_weights_that_are_written_to_are_those_of_the_next_pass() -> None:
    """In place, as an optimizer does; and in other memory."""
    made = model(torch.bfloat16, torch.bfloat16).eval()
    run = captured(made)
    forced(made)
    plain = run._run
    for move in (False, True):
        with torch.no_grad():
            for _, adapter in adapters(made):
                b = adapter.get_parameter("b")
                b.mul_(1.5)
                if move:
                    b.data = b.data.clone()
        made.run_model = plain
        expected = forced(made)
        made.run_model = run
        assert_alike(forced(made), expected, LOGITS[torch.bfloat16])


@pytest.mark.parametrize("base", KINDS)
def test_every_form_of_frozen_weights_is_captured(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.get_device_capability() < KINDS[base].CAPABILITY:
        skip(GPU, f"one with products of {base}")
    if base == "nf4" and find_spec("bitsandbytes") is None:
        skip(PACKAGES, "bitsandbytes")
    source = ModelSource("grouped", RandomReader(GROUPED), None)
    made = build_model(source, torch.bfloat16, CUDA, base=base).eval()
    expected = forced(made)
    captured(made)
    replays = counted(monkeypatch)
    limit = EIGHT_BITS if KINDS[base].ROUNDS_INPUT else LOGITS[torch.bfloat16]
    assert_alike(forced(made), expected, limit)
    assert len(replays) > 60


@pytest.mark.parametrize("options", [{"kind": "dora"}, {"start": "pissa"}], ids=str)
def test_every_kind_of_adapter_is_captured(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ModelSource("grouped", RandomReader(GROUPED), None)
    made = build_model(source, torch.bfloat16, CUDA)
    attach(made, LoRAOptions(8, 16.0, 0.0, LINEARS, **options))  # type: ignore[arg-type]
    initialise(made, 0, CPU)
    with torch.no_grad():
        for _, adapter in adapters(made.to(CUDA)):
            adapter.to(torch.bfloat16)
            adapter.get_parameter("b").add_(0.02)
    expected = forced(made.eval())
    captured(made)
    replays = counted(monkeypatch)
    assert_alike(forced(made), expected, LOGITS[torch.bfloat16])
    assert len(replays) > 60


def texts(made: Transformer, batch: int) -> dict[int, list[int]]:
    done = decode_together(made, PROMPTS, 40, NO_STOP, Sampling(), batch)
    return {text.index: text.tokens for text in done}


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_texts_are_those_of_launched_passes(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where no two tokens are so near to one another that rounding could choose."""
    made = model(torch.float32, torch.bfloat16).eval()
    expected = texts(made, batch)
    captured(made)
    replays = counted(monkeypatch)
    assert texts(made, batch) == expected
    assert len(replays) >= 30


def test_nothing_is_left_of_a_cache() -> None:
    """Once it is gone; what libraries keep for the stream of all recordings is there after one."""
    made = model(torch.bfloat16, torch.bfloat16).eval()
    run = captured(made)
    left = []
    for _ in range(3):
        texts(made, 8)
        gc.collect()
        torch.cuda.empty_cache()
        left.append(torch.cuda.memory_allocated())
        assert len(run._steps) == 0
    assert left[1] == left[2]
