"""Matrix products, taken in the arithmetic that the device is good at.

Shapes: T tokens, I in_features, O out_features.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from llama.kernels.paths import is_planned, on_cuda

FEW_TOKENS = 4
"""Up to this many tokens a product takes as long as reading the weight does. Making a wider copy of
the weight first, which pays with more tokens, would only add to that."""
BATCH_OF_TOKENS = 16
"""Up to this many a product in float32 is one of decoding; see `_decoded`."""


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AMX or AVX-512 BF16 on x86, BF16 on Arm)."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """The type that activations have beside `weight`: that of the weight itself, or float32 where
    the device would only emulate products in it (half precision on a CPU without such
    instructions: several times slower, and no more exact). The weight then stays in half precision
    and a float32 copy of it is made for each product."""
    return computed_in(weight.dtype, weight.device)


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The same beside a weight on `device` that would be of `dtype` if it were not held in fewer
    bits."""
    if device.type != "cpu" or is_planned() or dtype == torch.float32:
        return dtype
    emulated = dtype == torch.float16 or not cpu_has_bf16()
    return torch.float32 if emulated else dtype


def times(
    x_TI: torch.Tensor, weight_OI: torch.Tensor, into_TO: torch.Tensor | None = None
) -> torch.Tensor:
    """`x W^T`, `[T, O]` in the type of `x`; in the place of `into` where that is given."""
    if into_TO is not None:
        return torch.mm(x_TI, weight_OI.to(x_TI.dtype).t(), out=into_TO)
    if x_TI.dtype != weight_OI.dtype and x_TI.shape[0] <= FEW_TOKENS:
        return (x_TI.to(weight_OI.dtype) @ weight_OI.t()).to(x_TI.dtype)
    weight_OI = weight_OI.to(x_TI.dtype)
    tokens = x_TI.shape[0]
    if 1 < tokens <= BATCH_OF_TOKENS and x_TI.dtype == torch.float32 and not on_cuda(x_TI):
        return _decoded(x_TI, weight_OI)
    return x_TI @ weight_OI.t()


def _decoded(x_TI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """`x W^T` of a batch of decoding in float32 on a CPU, where MKL's kernel for it is made for
    more rows: what was measured as the shortest way of each size (docs/benchmarks/decoding.md)."""
    tokens, (outputs, inputs) = x_TI.shape[0], weight_OI.shape
    if tokens <= FEW_TOKENS and outputs >= inputs:
        # copied, since a view must not leave an autograd function that others then add to in place
        return (weight_OI @ x_TI.t()).t().contiguous()
    if tokens > FEW_TOKENS and outputs >= 16 * inputs and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, None, "none", [], "")
    return x_TI @ weight_OI.t()


def times_transposed(
    g_TO: torch.Tensor,
    weight_OI: torch.Tensor,
    onto_TI: torch.Tensor | None = None,
    into_TI: torch.Tensor | None = None,
) -> torch.Tensor:
    """`g W`, `[T, I]` in the type of `g`; added to `onto`, in place, where that is given, or in the
    place of `into`."""
    weight_OI = weight_OI.to(g_TO.dtype)
    if onto_TI is not None:
        return onto_TI.addmm_(g_TO, weight_OI)
    return g_TO @ weight_OI if into_TI is None else torch.mm(g_TO, weight_OI, out=into_TI)
