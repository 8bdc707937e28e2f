"""Weights into a model built on the meta device: shares, ties, marks, memory, refusals."""

from __future__ import annotations

import subprocess
import sys
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from llama.errors import UserError
from llama.model.config import ModelConfig
from llama.weights.load import load_weights
from llama.weights.random_init import RandomReader
from llama.weights.shapes import expected_shapes
from tests.support.model_files import ROOT, TINY

CPU = torch.device("cpu")
BIASED = replace(TINY, attention_bias=True, mlp_bias=True)


def shard_dim(name: str) -> int | None:
    if "norm" in name or name.endswith(("wo.bias", "w2.bias")):
        return None
    return 1 if ".wo." in name or ".w2." in name else 0


def put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register `parameter` under a dotted name, making the modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in model._modules:
            model.add_module(part, nn.Module())
        model = model._modules[part]  # type: ignore[assignment]
    model.register_parameter(leaf, parameter)


def skeleton(config: ModelConfig, shard_count: int = 1) -> nn.Module:
    """The parameters of one rank of the model, on meta, marked as the real layers mark them."""
    model = nn.Module()
    for name, shape in expected_shapes(config).items():
        dim = shard_dim(name)
        sizes = [size // shard_count if axis == dim else size for axis, size in enumerate(shape)]
        parameter = nn.Parameter(torch.empty(sizes, device="meta"), requires_grad="norm" in name)
        parameter.shard_dim = dim  # type: ignore[attr-defined]
        if dim is not None:
            parameter.model_parallel = True  # type: ignore[attr-defined]
        put(model, name, parameter)
    return model


def loaded(config: ModelConfig, rank: int = 0, count: int = 1) -> dict[str, nn.Parameter]:
    model = skeleton(config, count)
    load_weights(model, RandomReader(config), torch.float32, CPU, rank, count)
    return dict(model.named_parameters())


def test_the_whole_model() -> None:
    reader = RandomReader(BIASED)
    parameters = loaded(BIASED)
    assert set(parameters) == reader.names()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, reader.read(name)), name


def test_shares_join_to_the_whole() -> None:
    whole = loaded(BIASED)
    ranks = [loaded(BIASED, rank, 4) for rank in range(4)]
    for name, parameter in whole.items():
        dim = shard_dim(name)
        parts = [rank[name].detach() for rank in ranks]
        joined = parts[0] if dim is None else torch.cat(parts, dim)
        assert torch.equal(joined, parameter), name


def test_type_marks_and_requires_grad_are_kept() -> None:
    model = skeleton(TINY, 2)
    load_weights(model, RandomReader(TINY), torch.bfloat16, CPU, 1, 2)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, nn.Parameter)
        assert parameter.dtype == torch.bfloat16
        assert parameter.requires_grad == ("norm" in name)
        assert parameter.shard_dim == shard_dim(name)  # type: ignore[attr-defined]
        assert getattr(parameter, "model_parallel", False) == (shard_dim(name) is not None)


def test_a_tied_parameter_stays_one_object() -> None:
    config = replace(TINY, tied_embedding=True)
    model = skeleton(config)
    put(model, "output.weight", model.get_parameter("tok_embeddings.weight"))
    load_weights(model, RandomReader(config), torch.float32, CPU, 0, 1)
    assert model.get_parameter("output.weight") is model.get_parameter("tok_embeddings.weight")
    assert not model.get_parameter("output.weight").is_meta


def test_adapters_are_left_alone() -> None:
    model = skeleton(TINY)
    adapter = nn.Parameter(torch.empty(4, 64, device="meta"))
    put(model, "layers.0.attention.wq.lora.a", adapter)
    load_weights(model, RandomReader(TINY), torch.float32, CPU, 0, 1)
    assert model.get_parameter("layers.0.attention.wq.lora.a") is adapter


def test_a_parameter_without_weights_is_an_error() -> None:
    model = skeleton(TINY)
    put(model, "layers.0.attention.wq.bias", nn.Parameter(torch.empty(64, device="meta")))
    with pytest.raises(RuntimeError, match=r"layers\.0\.attention\.wq\.bias"):
        load_weights(model, RandomReader(TINY), torch.float32, CPU, 0, 1)


def test_another_shape_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"tok_embeddings\.weight.*\[96, 64\].*\[192, 64\]"):
        model = skeleton(replace(TINY, vocab_size=192))
        load_weights(model, RandomReader(TINY), torch.float32, CPU, 0, 1)


class Spoilt(RandomReader):
    """Random weights but for one element of one tensor."""

    value = float("nan")

    def read(
        self, name: str, dim: int | None = None, start: int = 0, length: int | None = None
    ) -> torch.Tensor:
        tensor = super().read(name, dim, start, length)
        if name == "layers.1.feed_forward.w2.weight":
            tensor[3, 5] = self.value
        return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(
    dtype: torch.dtype, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spoilt, "value", value)
    with pytest.raises(UserError, match=r"layers\.1\.feed_forward\.w2\.weight.*NaN or infinity"):
        load_weights(skeleton(TINY), Spoilt(TINY), dtype, CPU, 0, 1)


def test_a_weight_too_large_for_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoilt, "value", 70000.0)
    load_weights(skeleton(TINY), Spoilt(TINY), torch.bfloat16, CPU, 0, 1)
    with pytest.raises(UserError, match=r"w2\.weight: a weight of 70000 is too large.*float16"):
        load_weights(skeleton(TINY), Spoilt(TINY), torch.float16, CPU, 0, 1)


def test_large_finite_sums_are_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoilt, "value", 65504.0)
    load_weights(skeleton(TINY), Spoilt(TINY), torch.float16, CPU, 0, 1)


def test_each_tensor_is_let_go_before_the_next_is_read() -> None:
    class Watched(RandomReader):
        alive: list[weakref.ref] = []  # noqa: RUF012

        def read(
            self, name: str, dim: int | None = None, start: int = 0, length: int | None = None
        ) -> torch.Tensor:
            others = [ref() for ref in self.alive if ref() is not None]
            assert len(others) <= 1, f"{len(others)} tensors held while {name} is read"
            others.clear()
            tensor = super().read(name, dim, start, length)
            self.alive.append(weakref.ref(tensor.untyped_storage()))
            return tensor

    load_weights(skeleton(TINY), Watched(TINY), torch.bfloat16, CPU, 0, 1)
    assert len(Watched.alive) == len(expected_shapes(TINY))


MEASURE = """
import torch
from llama.weights.load import load_weights
from llama.weights.random_init import RandomReader
from tests.support.peak import peak
from tests.unit.weights.test_load import TINY, CPU, replace, skeleton
load_weights(skeleton(TINY, 2), RandomReader(TINY), torch.bfloat16, CPU, 0, 2)
before = peak()
config = replace(TINY, dim=512, ffn_dim=2048, n_layers=40, head_dim=64, vocab_size=8192)
model = skeleton(config, 2)
load_weights(model, RandomReader(config), torch.bfloat16, CPU, 0, 2)
kept = sum(p.nbytes for p in model.parameters()) >> 20
print(peak() - before, kept)
"""


def test_peak_memory_is_what_is_kept_and_one_tensor() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    grown, kept = map(int, done.stdout.split())
    assert kept > 120  # so that another copy of it is seen
    # the largest tensor is 8 MiB in float32, a block of random numbers 16 MiB
    assert grown < kept + 100, (grown, kept)


class Counting:
    """A reader that counts the elements asked of it."""

    def __init__(self, reader: RandomReader) -> None:
        self.reader, self.config, self.files = reader, reader.config, reader.files
        self.elements = 0

    def names(self) -> set[str]:
        return self.reader.names()

    def fingerprint(self) -> str:
        return self.reader.fingerprint()

    def read(self, *args: Any, **options: Any) -> torch.Tensor:
        found = self.reader.read(*args, **options)
        self.elements += found.numel()
        return found


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_rank_reads_what_it_keeps_and_no_more(count: int) -> None:
    for rank in range(count):
        reader, model = Counting(RandomReader(BIASED)), skeleton(BIASED, count)
        load_weights(model, reader, torch.float32, CPU, rank, count)
        kept = sum(p.numel() for p in model.parameters())
        assert reader.elements == kept
        replicated = sum(p.numel() for p in model.parameters() if p.shard_dim is None)
        assert (kept - replicated) * count == BIASED.parameter_count() - replicated
