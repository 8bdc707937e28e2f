"""Rotary embedding: against its definition, and transformers' frequencies."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llama.model.config import ModelConfig
from llama.model.presets import PRESETS
from llama.model.rope import Rotation, inverse_frequencies
from llama.model.scaling import Llama3Scaling
from tests.support.closeness import assert_close, sums_of
from tests.support.model_files import TINY, huggingface_config

SHORT = replace(TINY, rope_scaling=Llama3Scaling(4.0, 1.0, 2.0, 64), max_seq_len=256)
CONFIGS = {name: PRESETS[name] for name in ("llama-7b", "llama-3-8b", "llama-3.1-8b")}
CONFIGS |= {"llama-3.2-1b": PRESETS["llama-3.2-1b"], "tiny": TINY, "tiny scaled": SHORT}
POWER = sums_of(8)
"""Of each frequency by itself: a power, which libraries round differently in its last bits, and a
few operations. All are positive, so nothing is lost by taking differences."""


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_frequencies_are_transformers_s(config: ModelConfig) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs = LlamaRotaryEmbedding(huggingface_config(config)).inv_freq
    torch.testing.assert_close(inverse_frequencies(config), theirs, rtol=POWER, atol=0)


def test_scaling_leaves_short_waves_and_divides_long_ones() -> None:
    config = PRESETS["llama-3.1-8b"]
    plain = inverse_frequencies(replace(config, rope_scaling=None))
    ratio = plain / inverse_frequencies(config)
    wavelengths = 2 * math.pi / plain
    assert torch.equal(ratio[wavelengths < 8192 / 4], torch.ones(int((wavelengths < 2048).sum())))
    long = ratio[wavelengths > 8192]
    assert_close(long, torch.full_like(long, 8.0), sums_of(4))  # one division and back
    between = ratio[(wavelengths > 2048) & (wavelengths < 8192)]
    assert len(between) and bool(((between > 1) & (between < 8)).all())


def test_frequencies_are_real_on_a_model_built_on_meta() -> None:
    with torch.device("meta"):
        assert inverse_frequencies(TINY).device.type == "cpu"


def test_rotation_turns_each_pair_of_halves_by_its_angle() -> None:
    frequencies = torch.tensor([1.0, 0.1, 0.01])
    positions = torch.tensor([0, 3, 1, 50])
    x = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(0))
    turned = Rotation(frequencies, positions, torch.float32)(x)
    pairs = torch.complex(x[..., :3], x[..., 3:]).to(torch.complex128)
    angles = torch.outer(positions.double(), frequencies.double()).unsqueeze(1)
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    # An angle of up to 50 is rounded by up to 25 EPSILON, and turns the pair by as much too far.
    assert_close(turned, torch.cat((expected.real, expected.imag), dim=-1), sums_of(30))


def test_a_factor_lengthens_what_is_turned_and_its_gradient() -> None:
    frequencies, positions = torch.tensor([1.0, 0.1]), torch.tensor([2, 5])
    x = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)).double()
    plain, longer = (
        Rotation(frequencies, positions, torch.float64, factor) for factor in (1.0, 1.5)
    )
    torch.testing.assert_close(longer(x), 1.5 * plain(x))
    assert torch.autograd.gradcheck(longer, (x.requires_grad_(),))


def test_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, TINY.head_dim, generator=torch.Generator().manual_seed(0))
    frequencies = inverse_frequencies(TINY)

    def product(at_q: int, at_k: int) -> torch.Tensor:
        turned = [
            Rotation(frequencies, torch.tensor([at]), torch.float32)(x)
            for at, x in ((at_q, q), (at_k, k))
        ]
        return (turned[0] * turned[1]).sum()

    # Both angles are rounded, the largest, 105, by up to 53 EPSILON. Of the vectors' lengths: their
    # product may be of any size.
    limit = sums_of(2 * 53 + TINY.head_dim) * q.norm() * k.norm()
    assert (product(7, 2) - product(105, 100)).abs() <= limit
    assert (product(7, 2) - product(7, 3)).abs() > 100 * limit
