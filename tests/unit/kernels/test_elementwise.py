"""RMSNorm and SwiGLU against their formulas as autograd differentiates them, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llama.kernels.elementwise import rms_norm, swiglu

EPS = 1e-5


def case(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("trainable", [False, True])
def test_rms_norm_is_its_formula(trainable: bool) -> None:
    x, weight, upstream = case(7, 16), case(16, seed=1), case(7, 16, seed=2)
    wide_x, wide_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    scale = (wide_x.square().mean(dim=-1, keepdim=True) + EPS).sqrt()
    expected = wide_x / scale * wide_weight
    expected.backward(upstream.double())
    x.requires_grad_()
    weight.requires_grad_(trainable)
    found = rms_norm(x, weight, EPS)
    found.backward(upstream)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert x.grad is not None and wide_x.grad is not None
    torch.testing.assert_close(x.grad.double(), wide_x.grad, rtol=0, atol=1e-5)
    assert (weight.grad is not None) == trainable
    if weight.grad is not None and wide_weight.grad is not None:
        torch.testing.assert_close(weight.grad.double(), wide_weight.grad, rtol=0, atol=1e-5)


def test_rms_norm_takes_the_mean_in_float32() -> None:
    """In bf16, 300 squares of 1 would sum to 256."""
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
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    for mine, other in ((gate.grad, wide_gate.grad), (up.grad, wide_up.grad)):
        assert mine is not None and other is not None
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=1e-5)
    torch.testing.assert_close(swiglu(gate, up), F.silu(gate) * up)
