"""Adapters that start as the strongest part of the frozen weight.

Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language
Models", 2024, section 3: of W = U S V^T the R largest singular values and their vectors train, as
A0 = sqrt(S_R / scale) V_R^T and B0 = U_R sqrt(S_R / scale), and the residual of W is frozen:
`y = (W - scale B0 A0) x + scale B A x`.

Here W stays as it is, and the same sum is taken in another order:

    y = W x + scale (B A - B0 A0) x = W x + scale (B (A - A0) + (B - B0) A0) x

At the start that is W x to the last digit in any precision, where a residual rounded to 16 bits is
not; a base held in fewer bits need not be taken apart; dropout falls on what was learnt alone; and
the adapter that is written is one of the untouched base. A0 and B0 are kept beside A and B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from llama.adapters.adapter import Tensors, Weight
from llama.adapters.lora import LoRAAdapter
from llama.parallel.layers import ParallelLinear, mark_shard, shard_dim, share_of
from llama.settings import LoRAOptions
from llama.settings.starts import iterations


class PissaAdapter(LoRAAdapter):
    """Is written as an ordinary adapter of twice the rank, `[A; A0]` and `[B, -B0]`, as PEFT
    converts one (`subtract_mutated_init`)."""

    FIXED: ClassVar[Mapping[str, str]] = {"a0": "a", "b0": "b"}
    PATHS: ClassVar[int] = 2

    def __init__(self, base: ParallelLinear, options: LoRAOptions) -> None:
        super().__init__(base, options)
        self.weight_dim = 0 if self.column else 1
        self.a0, self.b0 = _frozen_like(self.a), _frozen_like(self.b)

    @torch.no_grad()
    def reset(self, generator: torch.Generator, weight: Weight) -> None:
        """From the whole weight, so that each degree of tensor parallelism has the same; of
        replicated factors every rank takes the first one's."""
        whole = self.tp.join(weight(), self.weight_dim)
        n = iterations(self.options.start)
        a, b = (f / self.scale**0.5 for f in principal(whole, self.options.rank, n, generator))
        for value, names in (a, ("a", "a0")), (b, ("b", "b0")):
            value = self.tp.from_first(value)
            for name in names:
                parameter = self.get_parameter(name)
                parameter.copy_(share_of(value, parameter, self.tp))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`[A - A0; A0]` and `[B, B - B0]`, of twice the rank."""
        a = torch.cat([self.a - self.a0, self.a0], dim=0)
        return a, torch.cat([self.b, self.b - self.b0], dim=1)

    @classmethod
    def written(cls, tensors: Tensors) -> Tensors:
        return {
            "a": torch.cat([tensors["a"], tensors["a0"]], dim=0),
            "b": torch.cat([tensors["b"], -tensors["b0"]], dim=1),
        }

    @classmethod
    def held(cls, written: Tensors) -> Tensors:
        (a, a0), (b, minus_b0) = written["a"].chunk(2, dim=0), written["b"].chunk(2, dim=1)
        whole = {"a": a, "b": b, "a0": a0, "b0": -minus_b0}
        return {name: tensor.contiguous() for name, tensor in whole.items()}

    @classmethod
    def to_peft(cls, options: LoRAOptions) -> dict[str, Any]:
        """Of twice the rank, alpha is such that the scale is the same."""
        more = 2.0 if options.scale == "alpha/r" else 2.0**0.5
        wider = {"r": 2 * options.rank, "lora_alpha": more * options.alpha}
        return super().to_peft(options) | wider


def principal(
    weight: torch.Tensor, rank: int, niter: int | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """`A[R, I]` and `B[O, R]` of `weight[O, I]`, float32: `B A` is of all matrices of that rank the
    nearest to it, and each factor has the roots of the singular values. With `niter` nearly so, in
    much less time: by a subspace drawn from `generator` and turned that often towards the largest
    ones (Halko et al., "Finding structure with randomness", 2009)."""
    if niter is None:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        seed = int(torch.randint(2**62, (), generator=generator))
        devices = [weight.device] if weight.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(weight, q=rank, niter=niter)
        vh = v.t()
    root = s[:rank].sqrt()
    return root.unsqueeze(1) * vh[:rank], u[:, :rank] * root


def _frozen_like(parameter: nn.Parameter) -> nn.Parameter:
    frozen = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
    mark_shard(frozen, shard_dim(parameter))
    return frozen
