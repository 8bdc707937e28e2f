"""RMSNorm and SwiGLU against their formulas as autograd differentiates them, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llama.kernels.elementwise import rms_norm, swiglu
from tests.support.closeness import assert_close, sums_of

EPS = 1e-5
WIDTH = 16
NORM = sums_of(WIDTH + 8)
"""A mean over the width, and a few operations on each element."""
EACH = sums_of(8)
"""A few operations on each element, of which each CPU has its own exponential."""


def case(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("trainable", [False, True])
def test_rms_norm_is_its_formula(trainable: bool) -> None:
    x, weight, upstream = case(7, WIDTH), case(WIDTH, seed=1), case(7, WIDTH, seed=2)
    wide_x, wide_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    scale = (wide_x.square().mean(dim=-1, keepdim=True) + EPS).sqrt()
    expected = wide_x / scale * wide_weight
    expected.backward(upstream.double())
    x.requires_grad_()
    weight.requires_grad_(trainable)
    found = rms_norm(x, weight, EPS)
    found.backward(upstream)
    assert_close(found, expected, NORM)
    assert x.grad is not None and wide_x.grad is not None
    assert_close(x.grad, wide_x.grad, 2 * NORM)  # a mean of products with the mean
    assert (weight.grad is not None) == trainable
    if weight.grad is not None and wide_weight.grad is not None:
        assert_close(weight.grad, wide_weight.grad, 2 * NORM)


def test_rms_norm_takes_the_mean_in_float32() -> None:
    """In bf16, 300 squares of 1 would sum to 256. Of ones every step is exact on any CPU."""
    x = torch.ones(1, 300, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, torch.ones(300, dtype=torch.bfloat16), 0.0), x)


def test_swiglu_is_its_formula() -> None:
    gate, up, upstream = (case(7, 12, seed=seed) for seed in range(3))
    wide_gate, wide_up = gate.double().requires_grad_(), up.double().requires_grad_()
    expected = wide_gate * torch.sigmoid(wide_gate) * wide_up
    expected.backward(upstream.double())
    gate.requires_grad_()
    up.requires_grad_()
    found = swiglu(gate, up)
    found.backward(upstream)
    assert_close(found, expected, EACH)
    for mine, other in ((gate.grad, wide_gate.grad), (up.grad, wide_up.grad)):
        assert mine is not None and other is not None
        assert_close(mine, other, EACH)
    assert_close(swiglu(gate, up), F.silu(gate) * up, EACH)
