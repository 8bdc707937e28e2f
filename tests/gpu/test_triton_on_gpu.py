"""Each Triton kernel against the function that it is a form of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from llama.fused import kernels as _fused  # noqa: F401  (its kernels are known once it is there)
from llama.fused import paths
from llama.kernels import eight_bits as _eight_bits  # noqa: F401
from llama.kernels import elementwise as _elementwise  # noqa: F401
from llama.kernels import four_bits as _four_bits  # noqa: F401
from llama.kernels.compiled import KERNELS
from llama.model import loss as _loss  # noqa: F401
from tests.gpu.test_kernels_on_gpu import CUDA, FUSED
from tests.support.kernel_arguments import apart, calls, own
from tests.support.skips import needs_gpus

pytestmark = [
    pytest.mark.gpu,
    needs_gpus(),
]


def forms() -> Mapping[str, Callable[..., Any]]:
    from llama.kernels.triton_forms import FORMS  # Triton is there where a GPU is

    return FORMS


def test_every_kernel_has_a_form() -> None:
    assert set(forms()) == set(KERNELS)
    assert {name for name, _ in calls(torch.float32, CUDA)} == set(KERNELS)


@pytest.mark.parametrize("sizes", [(7, 96, 5000), (300, 576, 49152), (64, 4096, 32000)], ids=str)
@pytest.mark.parametrize("dtype", FUSED, ids=str)
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_forms_compute_what_the_functions_say(
    name: str, dtype: torch.dtype, sizes: tuple[int, int, int]
) -> None:
    for args in (args for of, args in calls(dtype, CUDA, *sizes) if of == name):
        found = forms()[name](*own(args))
        difference = apart(found, KERNELS[name](*own(args)))
        print(f"\n  {dtype} {sizes} {name}: {difference:.1e}", end="")
        assert difference <= FUSED[dtype], name


@pytest.mark.parametrize("dtype", FUSED, ids=str)
def test_wide_tiles_compute_what_the_functions_say(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiles that large gradients are cut into."""
    from llama.kernels import path_gradient_forms

    name, wide = "output_gradients", path_gradient_forms.OUTPUT._replace(programs=0)
    monkeypatch.setattr(path_gradient_forms, "OUTPUT", wide)
    for args in (args for of, args in calls(dtype, CUDA, 300, 1600) if of == name):
        assert apart(forms()[name](*own(args)), KERNELS[name](*own(args))) <= FUSED[dtype]


def test_a_rank_without_tokens_computes_nothing(compiled: None) -> None:
    """As the first of four that share three tokens."""
    x, a = torch.empty(0, 64, device=CUDA), torch.ones(8, 64, device=CUDA)
    (hidden,) = paths.hidden_each(x, (a,), (), 0.0)
    assert hidden.shape == (0, 8)
    _, (grad_b,) = paths.output_gradients((x,), (hidden,), (a.t(),), (1.0,))
    assert not grad_b.any()
