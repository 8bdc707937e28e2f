"""One transformer block as one autograd function: the same arithmetic as `TransformerBlock`'s own
path, with element-wise work fused, gradients summed inside the products, and a choice of what is
kept for the backward pass and what is computed again there.

For what `llama/fused/install.py` lists; all else takes the plain path.
Shapes: T tokens, D dim, H query heads, K kv heads, E head_dim, F feed-forward width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from llama.fused import kernels, tiles
from llama.fused.attended import Attended
from llama.fused.offload import HostInputs, Stored
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
    """Each adapter's `A x`, `[T, R]`: small, so kept with whatever else of the device's is."""
    attended: Attended | None = None
    middle: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    up: torch.Tensor | None = None
    ahead: Callable[[], None] | None = None
    """To be called once the attention has gone back."""


def linears(block: Any) -> list[tuple[Any, str]]:
    """The linear layers of a block with their names, in `ORDER`."""
    return [(getattr(getattr(block, PART_OF[name]), name), name) for name in ORDER]


def fused_block(
    block: nn.Module,
    x_TD: torch.Tensor,
    rotation: Rotation,
    documents: Documents,
    kept: Kept,
    host: HostInputs,
) -> torch.Tensor:
    """`block(x)`, keeping `kept` for the backward pass: what of it is the host's, in `host`."""
    adapters = {
        name: layer.lora.low_rank() for layer, name in linears(block) if layer.lora is not None
    }
    tensors = [t for low_rank in adapters.values() for t in (low_rank.a, low_rank.b)]
    run = _Run(block, rotation, documents, adapters, x_TD)
    return _FusedBlock.apply(run, kept, host, x_TD, *tensors)  # type: ignore[return-value]


class _FusedBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: _Run, kept: Kept, host: HostInputs, x: torch.Tensor, *_: torch.Tensor
    ) -> torch.Tensor:
        ctx.run = run
        saved = Saved(x)
        ctx.saved = saved if kept > Kept.HOST else host.store(x)
        return run.forward(saved, kept)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        run, saved = ctx.run, ctx.saved
        ctx.run = ctx.saved = None  # so that each part is freed once it was used
        if isinstance(stored := saved, Stored):
            saved = Saved(stored.take(), ahead=stored.ahead)
            if not stored.late:
                stored.ahead()
        grad_x = run.backward(saved, grad_outputs[0], ctx.needs_input_grad[3])
        factors = [g for name in run.factors for g in run.grads[name]]
        return None, None, None, grad_x, *factors


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
        self.grads: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.tiled = False

    # Forward

    def forward(self, saved: Saved, kept: Kept) -> torch.Tensor:
        self.tiled = tiles.in_tiles(kept, len(saved.x))
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
        if self.tiled:
            return tiles.forward(self, middle, y)
        gate, up = (self._linear(name, y, saved) for name in GATE_UP)
        del y
        if kept >= Kept.MIDDLE:
            saved.middle = middle
        h = kernels.swiglu(gate, up)
        if kept >= Kept.ALL:
            saved.gate, saved.up = gate, up
        del gate, up
        return self._linear("w2", h, saved).add_(middle)

    def ffn_of_tile(self, middle: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """As `Tiled` says."""
        saved = Saved(middle)
        gate, up = (self._linear(name, y, saved) for name in GATE_UP)
        return self._linear("w2", kernels.swiglu(gate, up), saved).add_(middle)

    def _project(self, saved: Saved) -> tuple[torch.Tensor, ...]:
        """q, k and v, turned: `[T, H or K, E]`."""
        y = self._normed(self.norms[0], saved.x, QKV, saved)
        q, k, v = (
            self._linear(name, y, saved).unflatten(-1, (heads, -1))
            for name, heads in zip(QKV, self.heads, strict=True)
        )
        return *kernels.rotate_both(q, k, *self.rotation.angles), v

    def _normed(
        self, norm: Any, x: torch.Tensor, names: tuple[str, ...], saved: Saved
    ) -> torch.Tensor:
        """The normed input of `names`; where their adapters have not seen it yet, they do."""
        new = tuple(n for n in names if n in self.factors and n not in saved.hidden)
        if not (new and self.p):
            return kernels.norm(x, norm.weight, norm.eps)
        seeds = self._seeds(new)
        y, *inputs = kernels.norm_dropped(x, norm.weight, norm.eps, seeds, self.p)
        for name, dropped in zip(new, inputs, strict=True):
            saved.hidden[name] = dropped @ self.factors[name].a.t()
        return y

    def _seeds(self, names: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        found = (self.factors[name].seed for name in names)
        return tuple(seed for seed in found if seed is not None)

    def _linear(self, name: str, x: torch.Tensor, saved: Saved) -> torch.Tensor:
        y = self.weights[name].times(x)
        if name in self.factors:
            factors = self.factors[name]
            if name not in saved.hidden:
                dropped = self._dropped(x, (name,))[0]
                saved.hidden[name] = dropped @ factors.a.t()
            y.addmm_(saved.hidden[name], factors.b.t(), alpha=factors.scale)
        return y

    def _dropped(self, x: torch.Tensor, names: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        return kernels.dropped_each(x, self._seeds(names), self.p) if self.p else (x,) * len(names)

    def _after_attention(
        self, saved: Saved, out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after the attention, and its norm."""
        norm = self.norms[1]
        return kernels.add_norm(saved.x, self._linear("wo", out, saved), norm.weight, norm.eps)

    # Backward

    def backward(self, saved: Saved, grad: torch.Tensor, to_input: bool) -> torch.Tensor | None:
        self._restore(saved)
        assert saved.attended is not None and saved.middle is not None
        if self.tiled:
            grad = tiles.backward(self, saved.middle, grad)
            saved.middle = None
        else:
            grad = self._ffn_backward(saved, grad)
        grad_out = self._linear_backward("wo", grad, saved.attended.out, saved)
        grad_q, grad_k, grad_v = saved.attended.backward(grad_out)
        saved.attended = None
        del grad_out
        if saved.ahead is not None:
            saved.ahead()
        grad_q, grad_k = kernels.rotate_both(grad_q, grad_k, *self.rotation.back)
        grads = tuple(g.flatten(1) for g in (grad_q, grad_k, grad_v))
        del grad_q, grad_k, grad_v
        return self._norm_backward(self.norms[0], QKV, grads, saved.x, grad, saved, to_input)

    def _restore(self, saved: Saved) -> None:
        """Compute again what `kept` left out."""
        if saved.attended is None:
            saved.attended = Attended(self._project(saved), self.documents, keep_inputs=True)
        elif saved.attended.needs_inputs:
            saved.attended.fill(self._project(saved))
        y = None
        if saved.middle is None:
            saved.middle, y = self._after_attention(saved, saved.attended.out())
        if saved.gate is None and not self.tiled:
            self._restore_gate_up(saved, saved.middle, y)

    def _restore_gate_up(self, saved: Saved, middle: torch.Tensor, y: torch.Tensor | None) -> None:
        norm = self.norms[1]
        normed = kernels.norm(middle, norm.weight, norm.eps) if y is None else y
        saved.gate, saved.up = (self._linear(name, normed, saved) for name in GATE_UP)

    def ffn_of_tile_backward(self, middle: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """As `Tiled` says."""
        saved = Saved(middle, middle=middle)
        self._restore_gate_up(saved, middle, None)
        return self._ffn_backward(saved, grad)

    def _ffn_backward(self, saved: Saved, grad: torch.Tensor) -> torch.Tensor:
        pair, middle = (saved.gate, saved.up), saved.middle
        saved.gate = saved.up = saved.middle = None
        assert middle is not None
        grad_h = self._linear_backward("w2", grad, partial(kernels.swiglu, *pair), saved)
        grads = kernels.swiglu_backward_(grad_h, *pair)
        del pair, grad_h
        found = self._norm_backward(self.norms[1], GATE_UP, grads, middle, grad, saved, True)
        assert found is not None
        return found

    def _norm_backward(
        self,
        norm: Any,
        names: tuple[str, ...],
        grads: tuple[torch.Tensor, ...],
        x: torch.Tensor,
        residual: torch.Tensor,
        saved: Saved,
        to_input: bool,
    ) -> torch.Tensor | None:
        """Through the layers `names`, whose input is the norm of `x`: `residual` and their
        gradient to `x`; None where nothing below needs it."""
        with_adapter = tuple(n for n in names if n in self.factors)
        inner = self._factor_gradients(
            names, grads, lambda: self._adapter_inputs(norm, x, with_adapter), saved
        )
        if not to_input:
            return None
        grad = self._frozen_backward(names, grads)
        if not (self.p and with_adapter):
            for name, part in zip(with_adapter, inner, strict=True):
                grad.addmm_(part, self.factors[name].a)
            return kernels.norm_backward(residual, grad, x, norm.weight, norm.eps)
        paths = tuple(
            part @ self.factors[name].a for name, part in zip(with_adapter, inner, strict=True)
        )
        return kernels.norm_backward_dropped(
            residual, grad, x, norm.weight, norm.eps, paths, self._seeds(with_adapter), self.p
        )

    def _adapter_inputs(
        self, norm: Any, x: torch.Tensor, names: tuple[str, ...]
    ) -> tuple[torch.Tensor, ...]:
        if not self.p:
            return (kernels.norm(x, norm.weight, norm.eps),) * len(names)
        seeds = self._seeds(names)
        return kernels.only_norm_dropped(x, norm.weight, norm.eps, seeds, self.p)

    def _linear_backward(
        self,
        name: str,
        grad: torch.Tensor,
        input_: Callable[[], torch.Tensor],
        saved: Saved,
    ) -> torch.Tensor:
        """From the gradient of the output of layer `name` to that of its input, which `input_`
        gives where an adapter needs it."""
        inner = self._factor_gradients(
            (name,), (grad,), lambda: self._dropped(input_(), (name,)), saved
        )
        grad = self._frozen_backward((name,), (grad,))
        for part in inner:
            path = part @ self.factors[name].a
            grad.add_(self._dropped(path, (name,))[0])
        return grad

    def _frozen_backward(
        self, names: tuple[str, ...], grads: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The sum of `g W` over the layers, summed by the products themselves."""
        total = self.weights[names[0]].times_transposed(grads[0])
        for name, grad in zip(names[1:], grads[1:], strict=True):
            self.weights[name].times_transposed(grad, onto=total)
        return total

    def _factor_gradients(
        self,
        names: tuple[str, ...],
        grads: tuple[torch.Tensor, ...],
        inputs: Callable[[], tuple[torch.Tensor, ...]],
        saved: Saved,
    ) -> list[torch.Tensor]:
        """Leaves the gradients of each adapter's A and B; returns those of its `A x`, `[T, R]`."""
        todo = [(name, g) for name, g in zip(names, grads, strict=True) if name in self.factors]
        inner = []
        for (name, grad), input_ in zip(todo, inputs() if todo else (), strict=True):
            factors = self.factors[name]
            part = (grad @ factors.b).mul_(factors.scale)
            hidden = saved.hidden.pop(name) if name in saved.hidden else input_ @ factors.a.t()
            grad_b = (grad.t() @ hidden).mul_(factors.scale)
            self.grads[name] = (part.t() @ input_, grad_b)
            inner.append(part)
        return inner
