"""Cross-entropy over the vocabulary, summed, with the logits never whole.

Shapes: N supervised positions, D dim, V vocabulary; `/p` marks a sharded one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from llama.kernels.compiled import compiled, kernel, rounds
from llama.parallel.mesh import TensorParallel

CHUNK_ELEMENTS = 2**25
"""Logits held at a time, in elements: 128 MiB of float32. Twice as many where one kernel makes
their gradient of them in half precision."""


def summed_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_N: torch.Tensor,
    tp: TensorParallel,
    columns: int | None = None,
    elements: int | None = None,
) -> torch.Tensor:
    """The sum over positions of `-log softmax(hidden weight^T)[label]`, a float32 scalar.

    `weight_VD` is this rank's `[V/p, D]`, of which the first `columns` rows stand for tokens (None:
    all); the others are in no softmax. Labels are of the whole vocabulary; a position whose label
    is below 0 counts for nothing. The gradients are formed chunk by chunk together with the loss,
    so that no more than `elements` logits (None: `CHUNK_ELEMENTS`) ever exist; the
    vocabulary-parallel form follows Shoeybi et al., "Megatron-LM", 2019, section 3."""
    want_gradient = torch.is_grad_enabled()
    weight_VD = weight_VD.to(hidden_ND.dtype)
    columns = weight_VD.shape[0] if columns is None else columns
    assert tp.size > 1 or columns == weight_VD.shape[0], "one rank's share is the vocabulary"
    return _SummedCrossEntropy.apply(  # type: ignore[return-value]
        hidden_ND, weight_VD, labels_N, tp, columns, elements or CHUNK_ELEMENTS, want_gradient
    )


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        tp: TensorParallel,
        columns: int,
        elements: int,
        want_gradient: bool,
    ) -> torch.Tensor:
        grad_hidden = torch.empty_like(hidden) if want_gradient else None
        grad_weight = None
        if want_gradient and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        at_once = grad_hidden is not None and grad_weight is None and compiled()
        rows = _rows(elements, weight.shape[0], at_once)
        for start in rounds(range(0, hidden.shape[0], rows)):
            chunk = slice(start, start + rows)
            if at_once and grad_hidden is not None:
                logits, targets = hidden[chunk] @ weight.t(), labels[chunk].unsqueeze(1)
                if tp.size == 1:
                    losses, grad_logits = _losses_and_gradient(logits, targets)
                else:
                    losses, grad_logits = _of_shards(logits, targets, tp, columns)
                del logits
                total += losses.sum()
                torch.mm(grad_logits, weight, out=grad_hidden[chunk])
                continue
            losses, probabilities, local, inside = _chunk(
                hidden[chunk], weight, labels[chunk], tp, columns
            )
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
        return (grad_hidden.float() * scale).to(grad_hidden.dtype), grad_weight, *[None] * 5


def _rows(elements: int, vocabulary: int, at_once: bool) -> int:
    """Positions of one chunk; in whole tiles of the matrix units, if there are as many."""
    rows = max(1, (2 if at_once else 1) * elements // vocabulary)
    return rows // 128 * 128 if rows >= 128 else rows


@kernel
def _losses_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses `[n, 1]`, and their gradient to the logits `[n, V]` in the type of those: the softmax
    less one at the label, `labels` `[n, 1]`; 0 where that is below 0."""
    wide = logits.float()
    largest = wide.amax(dim=1, keepdim=True)
    normaliser = (wide - largest).exp().sum(dim=1, keepdim=True)
    log_normaliser = normaliser.log() + largest
    columns = torch.arange(logits.shape[1], device=logits.device)
    gradient = (wide - log_normaliser).exp() - (columns == labels).float()
    losses = log_normaliser - wide.gather(1, labels.clamp(min=0))
    counts = labels >= 0
    return losses.where(counts, 0.0), gradient.where(counts, 0.0).to(logits.dtype)


def _of_shards(
    logits: torch.Tensor, labels: torch.Tensor, tp: TensorParallel, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same where each rank has the logits of a part of the vocabulary. Ranks tell one another
    three numbers of each position."""
    if columns < logits.shape[1]:
        logits[:, columns:] = -torch.inf
    local = labels - tp.rank * logits.shape[1]
    largest, total, own = tp.every(_shard_statistics(logits, local)).unbind(2)  # [p, n]
    total = total.masked_fill(largest.isneginf(), 0.0)  # of a rank that has no token
    most = largest.amax(dim=0)
    log_normaliser = ((largest - most).exp() * total).sum(dim=0).log() + most
    counts = labels.squeeze(1) >= 0
    losses = (log_normaliser - own.sum(dim=0)).where(counts, 0.0)
    # An infinite one leaves no gradient.
    divided_by = log_normaliser.where(counts, torch.inf).unsqueeze(1)
    return losses, _shard_gradient(logits, local, divided_by)


@kernel
def _shard_statistics(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of each row the largest of the logits, the sum of their exponentials over its own, and that
    at the label, `labels` `[n, 1]`, or 0 where that is none of these columns: float32 `[n, 3]`."""
    wide, width = logits.float(), logits.shape[1]
    largest = wide.amax(dim=1, keepdim=True)
    total = (wide - largest).exp().sum(dim=1, keepdim=True)
    inside = (labels >= 0) & (labels < width)
    own = wide.gather(1, labels.clamp(0, width - 1)).where(inside, 0.0)
    return torch.cat([largest, total, own], dim=1)


@kernel
def _shard_gradient(
    logits: torch.Tensor, labels: torch.Tensor, log_normaliser: torch.Tensor
) -> torch.Tensor:
    """`exp(logits - log_normaliser)`, `[n, 1]`, less one at the label where that is one of these
    columns, in the type of the logits."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    softmax = (logits.float() - log_normaliser).exp()
    return (softmax - (columns == labels).float()).to(logits.dtype)


def _chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    tp: TensorParallel,
    columns: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses `[n]`, this rank's softmax `[n, V/p]`, each label's local column `[n, 1]`, and 1.0
    where the label is this rank's, else 0.0, `[n, 1]`."""
    logits = (hidden @ weight.t()).float()
    logits[:, columns:] = -torch.inf
    largest = logits.amax(dim=1, keepdim=True)
    tp.all_reduce_(largest, dist.ReduceOp.MAX)
    logits -= largest
    local = labels.unsqueeze(1) - tp.rank * weight.shape[0]
    inside = (local >= 0) & (local < weight.shape[0])
    local = local.clamp(0, weight.shape[0] - 1)
    of_label = logits.gather(1, local).where(inside, 0.0)
    tp.all_reduce_(of_label)
    probabilities = logits.exp_()
    normaliser = probabilities.sum(dim=1, keepdim=True)
    tp.all_reduce_(normaliser)
    losses, counts = (normaliser.log() - of_label).squeeze(1), labels >= 0
    probabilities /= normaliser.where(counts.unsqueeze(1), torch.inf)  # no gradient from the others
    return losses.where(counts, 0.0), probabilities, local, inside.float()
