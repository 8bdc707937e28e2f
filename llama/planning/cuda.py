"""What CUDA runs where a CPU would run something else, for a trace that has no GPU.

torch chooses by the device of the tensors, and the fake ones of a trace are on the CPU. So for the
length of the trace the few functions whose memory depends on that choice are those that CUDA has:
their outputs, and what they save, are the same ones. (`llama/kernels/paths.py` calls them.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from llama.kernels.paths import Operators

_aten: Any = torch.ops.aten


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Flash attention in half precision, the memory-efficient kernel in float32. Both keep the
    output and a log-sum-exp."""
    assert attn_mask is None, "no mask is used in training"
    if q.dtype == torch.float32:
        return _aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, is_causal)[0]
    return _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]


def _rms_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor, eps: float
) -> torch.Tensor:
    return _FusedRMSNorm.apply(x, weight)  # type: ignore[return-value]


class _FusedRMSNorm(torch.autograd.Function):
    """torch's one kernel: it saves its input, the weight and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None


OPERATORS: Operators = {
    F.scaled_dot_product_attention: _attention,
    F.rms_norm: _rms_norm,
    torch.Tensor.item: lambda _: 0,  # the dropout's seed, which the host draws
}


def workspace(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Bytes that an attention kernel's backward pass takes for itself (torch's
    `aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp`, `mha_bwd`): the gradient of q
    summed in float32 and one float32 number for each of its rows; and where k and v have fewer
    heads, their gradients for all the heads of q."""
    name = func._schema.name.rpartition("::")[2]
    if name not in _BACKWARDS:
        return 0
    q, k = (args[i] for i in _BACKWARDS[name])
    heads, kv_heads = (_heads(x) for x in (q, k))
    own = 4 * q.numel() + 4 * q.numel() // q.shape[-1]
    return own if heads == kv_heads else own + 2 * k.numel() * (heads // kv_heads) * k.itemsize


_BACKWARDS = {
    "_scaled_dot_product_flash_attention_backward": (1, 2),
    "_scaled_dot_product_cudnn_attention_backward": (1, 2),
    "_scaled_dot_product_efficient_attention_backward": (1, 2),
    "_varlen_attn_backward": (1, 2),
}
"""The operators, and where q and k are among their arguments."""


def _heads(x: torch.Tensor) -> int:
    return x.shape[1]  # [N, H, S, E] of a plain batch, [T, H, E] of documents
