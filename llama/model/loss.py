"""Cross-entropy over the vocabulary, summed, with the logits never whole.

Shapes: N supervised positions, D dim, V vocabulary; `/p` marks a sharded one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from llama.parallel.mesh import TensorParallel

CHUNK_ELEMENTS = 2**25
"""Logits held at a time, in elements: 128 MiB of float32."""


def summed_cross_entropy(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor, tp: TensorParallel
) -> torch.Tensor:
    """The sum over positions of `-log softmax(hidden weight^T)[label]`, a float32 scalar.

    `weight_VD` is this rank's `[V/p, D]`, labels are of the whole vocabulary. The gradients are
    formed chunk by chunk together with the loss, so that no more than `CHUNK_ELEMENTS` logits ever
    exist; the vocabulary-parallel form follows Shoeybi et al., "Megatron-LM", 2019, section 3."""
    want_gradient = torch.is_grad_enabled()
    weight_VD = weight_VD.to(hidden_ND.dtype)
    return _SummedCrossEntropy.apply(hidden_ND, weight_VD, labels_N, tp, want_gradient)  # type: ignore


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        tp: TensorParallel,
        want_gradient: bool,
    ) -> torch.Tensor:
        grad_hidden = torch.empty_like(hidden) if want_gradient else None
        grad_weight = None
        if want_gradient and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, start + rows)
            losses, probabilities, local, inside = _chunk(hidden[chunk], weight, labels[chunk], tp)
            total += losses.sum()
            if grad_hidden is not None:
                # d loss / d logits = softmax - onehot(label), the label on the rank that holds it.
                probabilities.scatter_add_(1, local, -inside)
                grad_logits = probabilities.to(hidden.dtype)
                torch.mm(grad_logits, weight, out=grad_hidden[chunk])
                if grad_weight is not None:
                    grad_weight += (grad_logits.t() @ hidden[chunk]).float()
        if grad_hidden is not None:
            tp.all_reduce_(grad_hidden)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (scale,) = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return (grad_hidden.float() * scale).to(grad_hidden.dtype), grad_weight, None, None, None


def _chunk(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, tp: TensorParallel
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses `[n]`, this rank's softmax `[n, V/p]`, each label's local column `[n, 1]`, and 1.0
    where the label is this rank's, else 0.0, `[n, 1]`."""
    logits = (hidden @ weight.t()).float()
    largest = logits.amax(dim=1, keepdim=True)
    tp.all_reduce_(largest, dist.ReduceOp.MAX)
    logits -= largest
    local = labels.unsqueeze(1) - tp.rank * weight.shape[0]
    inside = (local >= 0) & (local < weight.shape[0])
    local = local.clamp(0, weight.shape[0] - 1)
    of_label = logits.gather(1, local) * inside
    tp.all_reduce_(of_label)
    probabilities = logits.exp_()
    normaliser = probabilities.sum(dim=1, keepdim=True)
    tp.all_reduce_(normaliser)
    probabilities /= normaliser
    return (normaliser.log() - of_label).squeeze(1), probabilities, local, inside.float()
