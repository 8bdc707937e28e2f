"""One transformer block as one autograd function: the same arithmetic as `TransformerBlock`'s own
path, with element-wise work fused, gradients summed inside the products, and a choice of what is
kept for the backward pass and what is computed again there.

For what `llama/fused/install.py` lists; all else takes the plain path.
Shapes: T tokens, D dim, H query heads, K kv heads, E head_dim, F feed-forward width, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llama.fused import kernels
from llama.fused.attended import Attended
from llama.fused.paths import (
    Path,
    gated,
    gated_backward_,
    hidden_each,
    input_gradients_,
    output_gradients,
)
from llama.model.attention import document_attention
from llama.model.config import PART_OF
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.rope import Rotation
from llama.parallel.dropout import draw_seed
from llama.parallel.side_path import LowRank

QKV, GATE_UP = ("wq", "wk", "wv"), ("w1", "w3")
ORDER = (*QKV, "wo", *GATE_UP, "w2")
"""In which a block calls its layers, and its adapters draw their masks."""


@dataclass(frozen=True)
class Factors:
    """An adapter's tensors in the type of the activations, and the seed of its mask."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    seed: torch.Tensor | None


@dataclass
class Saved:
    """What stays between the passes; the rest of the forward pass is freed as it goes."""

    x: torch.Tensor
    hidden: dict[str, torch.Tensor] = field(default_factory=dict)
    """Each adapter's `A x`, `[T, R]`: small, so always kept."""
    scales: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)
    """Of each norm, by the layers that read it: its scale of each token, `[T, 1]` in float32."""
    attended: Attended | None = None
    middle: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    up: torch.Tensor | None = None


def linears(block: Any) -> list[tuple[Any, str]]:
    """The linear layers of a block with their names, in `ORDER`."""
    return [(getattr(getattr(block, PART_OF[name]), name), name) for name in ORDER]


def fused_block(
    block: nn.Module, x_TD: torch.Tensor, rotation: Rotation, documents: Documents, kept: Kept
) -> torch.Tensor:
    """`block(x)`, keeping `kept` for the backward pass."""
    adapters = {
        name: layer.lora.low_rank() for layer, name in linears(block) if layer.lora is not None
    }
    tensors = [t for low_rank in adapters.values() for t in (low_rank.a, low_rank.b)]
    run = _Run(block, rotation, documents, adapters, x_TD)
    return _FusedBlock.apply(run, kept, x_TD, *tensors)  # type: ignore[return-value]


class _FusedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, kept: Kept, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        ctx.run = run
        ctx.saved = Saved(x)
        return run.forward(ctx.saved, kept)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        run, saved = ctx.run, ctx.saved
        ctx.run = ctx.saved = None  # so that each part is freed once it was used
        grad_x = run.backward(saved, grad_outputs[0], ctx.needs_input_grad[2])
        factors = ((run.grads_a[name], run.grads_b[name]) for name in run.factors)
        return None, None, grad_x, *(gradient for pair in factors for gradient in pair)


class _Run:
    """One call of one block."""

    def __init__(
        self,
        block: Any,
        rotation: Rotation,
        documents: Documents,
        adapters: dict[str, LowRank],
        x: torch.Tensor,
    ) -> None:
        dtype = x.dtype
        self.rotation, self.documents = rotation, documents
        self.weights = {name: layer.kind(layer.weight) for layer, name in linears(block)}
        self.heads = [block.attention.n_heads, *[block.attention.n_kv_heads] * 2]
        self.norms = block.attention_norm, block.ffn_norm
        self.p = next((path.dropout for path in adapters.values()), 0.0) if block.training else 0.0
        self.factors = {
            name: Factors(
                path.a.detach().to(dtype),
                path.b.detach().to(dtype),
                path.scale,
                draw_seed(x.device) if self.p else None,
            )
            for name, path in adapters.items()
        }
        self.grads_a: dict[str, torch.Tensor] = {}
        self.grads_b: dict[str, torch.Tensor] = {}

    # Forward

    def forward(self, saved: Saved, kept: Kept) -> torch.Tensor:
        qkv = self._project(saved)
        if kept >= Kept.ATTENTION:
            saved.attended = Attended(qkv, self.documents, kept >= Kept.FFN_INPUTS)
            out = saved.attended.out()
        else:
            q, k, v = qkv
            out = document_attention(q, k, v, self.documents).flatten(1)
            del q, k, v
        del qkv
        middle, y = self._after_attention(saved, out)
        del out
        self._see(GATE_UP, y, saved)
        gate, up = (self.weights[name].times(y) for name in GATE_UP)
        del y
        if kept >= Kept.MIDDLE:
            saved.middle = middle
        h = self._gated(gate, up, saved)
        if kept >= Kept.ALL:
            saved.gate, saved.up = gate, up
        del gate, up
        return self._linear("w2", h, saved).add_(middle)

    def _project(self, saved: Saved) -> tuple[torch.Tensor, ...]:
        """q, k and v, turned: `[T, H or K, E]`."""
        norm = self.norms[0]
        y, saved.scales[QKV] = kernels.normed(saved.x, norm.weight, norm.eps)
        self._see(QKV, y, saved)
        q, k, v = (self.weights[name].times(y) for name in QKV)
        self._add_path("wv", v, saved)
        q, k, v = (
            x.unflatten(-1, (heads, -1)) for x, heads in zip((q, k, v), self.heads, strict=True)
        )
        paths, scales = self._paths(QKV[:2], saved)
        return *kernels.rotate_both(q, k, *self.rotation.angles, paths, scales), v

    def _after_attention(
        self, saved: Saved, out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after the attention, and its norm."""
        norm = self.norms[1]
        self._see(("wo",), out, saved)
        update = self._linear("wo", out, saved)
        middle, y, saved.scales[GATE_UP] = kernels.add_norm(saved.x, update, norm.weight, norm.eps)
        return middle, y

    def _gated(self, gate: torch.Tensor, up: torch.Tensor, saved: Saved) -> torch.Tensor:
        """The feed-forward's inside, `[T, F]`, of the frozen layers' outputs."""
        down = self._with_adapter(("w2",))
        matrices = tuple(self.factors[name].a for name in down)
        h, *hidden = gated(
            gate, up, *self._paths(GATE_UP, saved), matrices, self._seeds(down), self.p
        )
        saved.hidden.update(zip(down, hidden, strict=True))
        return h

    def _see(self, names: tuple[str, ...], x: torch.Tensor, saved: Saved) -> None:
        """Have the adapters of `names` see their input `x`, if they have not yet."""
        new = tuple(name for name in self._with_adapter(names) if name not in saved.hidden)
        if new:
            matrices = tuple(self.factors[name].a for name in new)
            hidden = hidden_each(x, matrices, self._seeds(new), self.p)
            saved.hidden.update(zip(new, hidden, strict=True))

    def _linear(self, name: str, x: torch.Tensor, saved: Saved) -> torch.Tensor:
        return self._add_path(name, self.weights[name].times(x), saved)

    def _add_path(self, name: str, y: torch.Tensor, saved: Saved) -> torch.Tensor:
        if name in self.factors:
            factors = self.factors[name]
            y.addmm_(saved.hidden[name], factors.b.t(), alpha=factors.scale)
        return y

    def _with_adapter(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name in self.factors)

    def _paths(
        self, names: tuple[str, ...], saved: Saved
    ) -> tuple[tuple[Path, ...], tuple[float, ...]]:
        """What is added to the outputs of `names` by whoever reads them next, and the scales."""
        found = [self.factors.get(name) for name in names]
        paths = tuple(
            (saved.hidden[name], factors.b) if factors else ()
            for name, factors in zip(names, found, strict=True)
        )
        return paths, tuple(factors.scale if factors else 1.0 for factors in found)

    def _seeds(self, names: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        found = (self.factors[name].seed for name in names)
        return tuple(seed for seed in found if seed is not None)

    # Backward

    def backward(self, saved: Saved, grad: torch.Tensor, to_input: bool) -> torch.Tensor | None:
        self._restore(saved)
        assert saved.attended is not None and saved.middle is not None
        grad = self._ffn_backward(saved, grad)
        grad_out = self._attention_output_backward(saved, grad)
        grad_q, grad_k, grad_v = saved.attended.backward(grad_out)
        saved.attended = None
        del grad_out
        grad_q, grad_k = kernels.rotate_both(grad_q, grad_k, *self.rotation.back)
        grads = tuple(g.flatten(1) for g in (grad_q, grad_k, grad_v))
        del grad_q, grad_k, grad_v
        parts = self._output_gradients(QKV, grads, saved)
        return self._norm_backward(0, QKV, grads, parts, saved.x, grad, saved, to_input)

    def _restore(self, saved: Saved) -> None:
        """Compute again what `kept` left out."""
        if saved.attended is None:
            saved.attended = Attended(self._project(saved), self.documents, keep_inputs=True)
        elif saved.attended.needs_inputs:
            saved.attended.fill(self._project(saved))
        y = None
        if saved.middle is None:
            saved.middle, y = self._after_attention(saved, saved.attended.out())
        if saved.gate is None:
            if y is None:
                norm = self.norms[1]
                y, _ = kernels.normed(saved.middle, norm.weight, norm.eps)
            saved.gate, saved.up = (self.weights[name].times(y) for name in GATE_UP)

    def _ffn_backward(self, saved: Saved, grad: torch.Tensor) -> torch.Tensor:
        gate, up, middle = saved.gate, saved.up, saved.middle
        saved.gate = saved.up = saved.middle = None
        assert gate is not None and up is not None and middle is not None
        down, seeds = (), ()
        if "w2" in self.factors:
            down = *self._output_gradients(("w2",), (grad,), saved), self.factors["w2"].a
            seeds = self._seeds(("w2",))
        grad_h = self.weights["w2"].times_transposed(grad)
        to_gate, to_up, *found = gated_backward_(
            grad_h, gate, up, *self._paths(GATE_UP, saved), down, seeds, self.p
        )
        grads = to_gate, to_up
        del gate, up, grad_h
        self.grads_a.update(zip(("w2",), found, strict=False))
        parts = self._output_gradients(GATE_UP, grads, saved)
        result = self._norm_backward(1, GATE_UP, grads, parts, middle, grad, saved, True)
        assert result is not None
        return result

    def _attention_output_backward(self, saved: Saved, grad: torch.Tensor) -> torch.Tensor:
        """From the gradient of the residual stream after the attention to that of its output."""
        assert saved.attended is not None
        parts = self._output_gradients(("wo",), (grad,), saved)
        grad_out = self.weights["wo"].times_transposed(grad)
        if parts:
            self._input_gradients(("wo",), saved.attended.out(), (grad_out,), (), parts)
        return grad_out

    def _norm_backward(
        self,
        number: int,
        names: tuple[str, ...],
        grads: tuple[torch.Tensor, ...],
        parts: tuple[torch.Tensor, ...],
        x: torch.Tensor,
        residual: torch.Tensor,
        saved: Saved,
        to_input: bool,
    ) -> torch.Tensor | None:
        """Through the layers `names`, whose input is the norm of `x`: `residual` and their
        gradient to `x`; None where nothing below needs it. `parts`: the gradients of what their
        adapters made of that input."""
        norm = self.norms[number]
        onto = (self._frozen_backward(names, grads),) if to_input else ()
        del grads
        if parts:
            scale = saved.scales[names], norm.weight
            self._input_gradients(self._with_adapter(names), x, onto, scale, parts)
        return kernels.norm_backward(residual, *onto, x, norm.weight, norm.eps) if onto else None

    def _frozen_backward(
        self, names: tuple[str, ...], grads: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The sum of `g W` over the layers, summed by the products themselves."""
        total = self.weights[names[0]].times_transposed(grads[0])
        for name, grad in zip(names[1:], grads[1:], strict=True):
            self.weights[name].times_transposed(grad, onto=total)
        return total

    def _output_gradients(
        self, names: tuple[str, ...], grads: tuple[torch.Tensor, ...], saved: Saved
    ) -> Path:
        """The gradient of each adapter's `A x`, `[T, R]`; leaves that of its B."""
        parts = []
        for name, grad in zip(names, grads, strict=True):
            if name in self.factors:
                factors = self.factors[name]
                part, self.grads_b[name] = output_gradients(
                    grad, saved.hidden.pop(name), factors.b, factors.scale
                )
                parts.append(part)
        return tuple(parts)

    def _input_gradients(
        self, names: tuple[str, ...], x: torch.Tensor, onto: Path, norm: Path, parts: Path
    ) -> None:
        """Leaves the gradient of each adapter's A; adds those to the input to `onto`."""
        matrices = tuple(self.factors[name].a for name in names)
        found = input_gradients_(x, onto, norm, parts, matrices, self._seeds(names), self.p)
        self.grads_a.update(zip(names, found[len(onto) :], strict=True))
