"""One transformer block as one autograd function: the same arithmetic as `TransformerBlock`'s own
path, with element-wise work fused, gradients summed inside the products, and a choice of what is
kept for the backward pass and what is computed again there.

For what `llama/fused/install.py` lists; all else takes the plain path.

Over tensor-parallel ranks each computes its own heads and its own part of the feed-forward. Sums
(`llama/parallel/sums.py`) are taken of the outputs of `wo` and of `w2`, and on the way back of the
gradients to the two norms, in both with what adapters add; of the gradients to `A x` of adapters on
those norms (`own_rows.py`); and at the end of those factors of adapters that every rank has whole.

Shapes: T tokens, D dim, H query heads, K kv heads, E head_dim, F feed-forward width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llama.base.frozen import times_each
from llama.fused import kernels, tiles
from llama.fused.attended import Attended, attended
from llama.fused.factors import Adapted
from llama.fused.offload import HostInputs, Stored
from llama.fused.overlapped import input_share, output_share
from llama.fused.own_rows import of_own_rows
from llama.fused.paths import gated, gated_backward_
from llama.model.config import PART_OF
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.rope import Rotation
from llama.parallel.side_path import LowRank
from llama.parallel.sums import Finish, Shares

QKV, GATE_UP = ("wq", "wk", "wv"), ("w1", "w3")
INPUTS = (QKV, ("wo",), GATE_UP, ("w2",))
"""What a block's layers read, by the layers that read it, in the order in which it calls them."""
SHARES = ("wo", "w2")
"""Those that read what is cut over tensor-parallel ranks, and give shares of a sum."""


@dataclass
class Saved:
    """What stays between the passes; the rest of the forward pass is freed as it goes."""

    x: torch.Tensor
    hidden: dict[str, torch.Tensor] = field(default_factory=dict)
    """Each adapter's `A x`, `[T, R]`: small, so kept with whatever else of the device's is."""
    scales: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)
    """Of each norm, by the layers that read it: its scale of each token, `[T, 1]` in float32."""
    attended: Attended | None = None
    middle: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    up: torch.Tensor | None = None
    ahead: Callable[[], None] | None = None
    """To be called once the attention has gone back."""


def linears(block: Any) -> list[tuple[Any, str]]:
    """The linear layers of a block with their names, in the order in which it calls them."""
    names = (name for readers in INPUTS for name in readers)
    return [(getattr(getattr(block, PART_OF[name]), name), name) for name in names]


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
        return None, None, None, grad_x, *run.adapted.gradients()


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
        self.rotation, self.documents = rotation, documents
        self.weights = {name: layer.kind(layer.weight) for layer, name in linears(block)}
        self.heads = [block.attention.n_heads, *[block.attention.n_kv_heads] * 2]
        self.norms = {QKV: block.attention_norm, GATE_UP: block.ffn_norm}
        """By the layers that read them."""
        self.attend, self.tp = block.attention.attend, block.attention.tp
        self.sums = self.tp.sums
        first = {name: layer.first_input for layer, name in linears(block)}
        starts = {readers: first[readers[0]] for readers in INPUTS}
        self.adapted = Adapted(adapters, starts, block.training, x)
        self.width, self.tiled = x.shape[1], False

    # Forward

    def forward(self, saved: Saved, kept: Kept) -> torch.Tensor:
        self.tiled = tiles.in_tiles(kept, len(saved.x))
        qkv = self._project(saved)
        if kept >= Kept.ATTENTION:
            keep_inputs = kept >= Kept.FFN_INPUTS
            saved.attended = attended(self.attend, qkv, self.documents, keep_inputs)
            out = saved.attended.out()
        else:
            out = self.attend(*qkv, self.documents).flatten(1)
        del qkv
        middle, y = self._after_attention(saved, out)
        del out
        if self.tiled:
            return tiles.forward(self, middle, y)
        if kept >= Kept.MIDDLE:
            saved.middle = middle
        return self._feed_forward(saved, middle, y, kept)

    def ffn_of_tile(self, middle: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """As `Tiled` says."""
        return self._feed_forward(Saved(middle), middle, y, Kept.INPUT)

    def _project(self, saved: Saved) -> tuple[torch.Tensor, ...]:
        """q, k and v, turned: `[T, H or K, E]`."""
        norm, hidden = self.norms[QKV], saved.hidden
        y, saved.scales[QKV] = kernels.normed(saved.x, norm.weight, norm.eps)
        self.adapted.see(QKV, y, hidden)
        q, k, v = times_each(y, [self.weights[name] for name in QKV])
        self.adapted.add_to("wv", v, hidden)
        q, k, v = (
            x.unflatten(-1, (heads, -1)) for x, heads in zip((q, k, v), self.heads, strict=True)
        )
        of_paths = self.adapted.paths(QKV[:2], hidden)
        return *kernels.rotate_both(q, k, *self.rotation.angles, *of_paths), v

    def _after_attention(
        self, saved: Saved, out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after the attention, and its norm."""
        norm = self.norms[GATE_UP]
        self.adapted.see(("wo",), out, saved.hidden)
        if self.tp.size == 1 and self.adapted.on(("wo",)):
            update = self.weights["wo"].times(out)
            middle = self.adapted.add_to_sum("wo", update, saved.x, saved.hidden)
            y, scale = kernels.normed(middle, norm.weight, norm.eps)
        else:
            middle, y = torch.empty_like(saved.x), torch.empty_like(saved.x)
            scale = torch.empty((len(y), 1), dtype=torch.float32, device=y.device)

            def read(rows: slice, shares: Shares) -> None:
                places = middle[rows], y[rows], scale[rows]
                kernels.add_norm(saved.x[rows], shares, norm.weight, norm.eps, places)

            share, finish = self._share("wo", out, saved.hidden)
            self.sums.read(share, read, finish)
        saved.scales[GATE_UP] = scale
        return middle, y

    def _share(
        self, name: str, read: torch.Tensor, hidden: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, Finish | None]:
        """As `output_share`, of the layer `name`, one of `SHARES`."""
        place = self.sums.place(len(read), self.width, read.dtype)
        return output_share(self.weights[name], self.adapted, name, read, hidden, place)

    def _feed_forward(
        self, saved: Saved, middle: torch.Tensor, y: torch.Tensor, kept: Kept
    ) -> torch.Tensor:
        """The block's output, of the residual stream after the attention and its norm."""
        gate, up = self._gate_up(saved, y)
        del y
        h = self._gated(saved, gate, up)
        if kept >= Kept.ALL:
            saved.gate, saved.up = gate, up
        del gate, up
        if self.tp.size == 1:
            update = self.weights["w2"].times(h)
            return self.adapted.add_to_sum("w2", update, middle, saved.hidden)
        share, finish = self._share("w2", h, saved.hidden)
        out = torch.empty_like(middle)

        def read(rows: slice, shares: Shares) -> None:
            kernels.added(middle[rows], shares, out[rows])

        self.sums.read(share, read, finish)
        return out

    def _gate_up(self, saved: Saved, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The frozen layers' outputs; their adapters see `y`."""
        self.adapted.see(GATE_UP, y, saved.hidden)
        gate, up = times_each(y, [self.weights[name] for name in GATE_UP])
        return gate, up

    def _gated(self, saved: Saved, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """The feed-forward's inside, `[T, F]`; the adapter of the layer after it sees that."""
        down = self.adapted.on(("w2",))
        matrices, seed = self.adapted.matrices(down), self.adapted.seed(down)
        of_paths = self.adapted.paths(GATE_UP, saved.hidden)
        h, *hidden = gated(gate, up, *of_paths, matrices, seed, self.adapted.p)
        saved.hidden.update(zip(down, hidden, strict=True))
        return h

    # Backward

    def backward(self, saved: Saved, grad: torch.Tensor, to_input: bool) -> torch.Tensor | None:
        self._restore(saved)
        assert saved.attended is not None and saved.middle is not None
        if self.tiled:
            grad = tiles.backward(self, saved.middle, grad)
            saved.middle = None
        else:
            grad = self._ffn_backward(saved, grad)
        grad_out = saved.attended.of_output(self._attention_output_backward(saved, grad))
        grad_q, grad_k, grad_v = saved.attended.backward(grad_out)
        saved.attended = None
        del grad_out
        if saved.ahead is not None:
            saved.ahead()
        grad_q, grad_k = kernels.rotate_both(grad_q, grad_k, *self.rotation.back)
        grads = tuple(g.flatten(1) for g in (grad_q, grad_k, grad_v))
        del grad_q, grad_k, grad_v
        share = self._to_norm(QKV, grads, saved.x, saved, to_input)
        take_sum = self.adapted.begin_sum(self.sums, SHARES)
        grad_x = None if share is None else self._through_norm(QKV, *share, saved.x, grad)
        take_sum()
        return grad_x

    def _restore(self, saved: Saved) -> None:
        """Compute again what `kept` left out."""
        if saved.attended is None:
            saved.attended = attended(self.attend, self._project(saved), self.documents, True)
        elif saved.attended.needs_inputs:
            saved.attended.fill(self._project(saved))
        y = None
        if saved.middle is None:
            saved.middle, y = self._after_attention(saved, saved.attended.out())
        if saved.gate is None and not self.tiled:
            self._restore_gate_up(saved, saved.middle, y)

    def _restore_gate_up(self, saved: Saved, middle: torch.Tensor, y: torch.Tensor | None) -> None:
        norm = self.norms[GATE_UP]
        if y is None:
            y, saved.scales[GATE_UP] = kernels.normed(middle, norm.weight, norm.eps)
        assert y is not None
        gate, up = saved.gate, saved.up = self._gate_up(saved, y)
        if self.adapted.on(("w2",)) and "w2" not in saved.hidden:
            self._gated(saved, gate, up)

    def ffn_of_tile_backward(self, middle: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """As `Tiled` says."""
        saved = Saved(middle, middle=middle)
        self._restore_gate_up(saved, middle, None)
        return self._ffn_backward(saved, grad)

    def _ffn_backward(self, saved: Saved, grad: torch.Tensor) -> torch.Tensor:
        gate, up, middle = saved.gate, saved.up, saved.middle
        saved.gate = saved.up = saved.middle = None
        assert gate is not None and up is not None and middle is not None
        adapted, name = self.adapted, ("w2",)
        down = adapted.output_gradients(name, (grad,), saved.hidden)
        down += adapted.matrices(adapted.on(name))
        grad_h = self.weights["w2"].times_transposed(grad)
        of_paths, seed = adapted.paths(GATE_UP, saved.hidden), adapted.seed(adapted.on(name))
        to_gate, to_up, *found = gated_backward_(grad_h, gate, up, *of_paths, down, seed, adapted.p)
        del gate, up, grad_h
        adapted.grads_a.update(zip(adapted.on(name), found, strict=True))
        share = self._to_norm(GATE_UP, (to_gate, to_up), middle, saved, True)
        assert share is not None
        return self._through_norm(GATE_UP, *share, middle, grad)

    def _attention_output_backward(self, saved: Saved, grad: torch.Tensor) -> torch.Tensor:
        """From the gradient of the residual stream after the attention to that of its output."""
        assert saved.attended is not None
        parts = self.adapted.output_gradients(("wo",), (grad,), saved.hidden)
        grad_out = self.weights["wo"].times_transposed(grad)
        if self.adapted.on(("wo",)):
            self.adapted.input_gradients(("wo",), saved.attended.out(), (grad_out,), (), parts)
        return grad_out

    def _to_norm(
        self,
        names: tuple[str, ...],
        grads: tuple[torch.Tensor, ...],
        x: torch.Tensor,
        saved: Saved,
        to_input: bool,
    ) -> tuple[torch.Tensor, Finish | None] | None:
        """This rank's share of the gradient to the norm of `x`, which the layers `names` read; None
        where nothing below needs it. Leaves the gradients of their adapters."""
        parts = self.adapted.output_gradients(names, grads, saved.hidden)
        weights, onto, finish = [self.weights[name] for name in names], (), None
        # Products in eight bits do not add themselves up: the adapters' kernel does, of all rows.
        rows, own = of_own_rows(self.tp, parts, not to_input or weights[0].ADDS)
        if to_input:
            place = self.sums.place(len(x), self.width, grads[0].dtype)
            onto, finish = input_share(weights, grads, place)
        scale = saved.scales[names], self.norms[names].weight
        self.adapted.input_gradients(names, x, onto, scale, own(), rows)
        return (onto[0], finish) if onto else None

    def _through_norm(
        self,
        names: tuple[str, ...],
        share: torch.Tensor,
        finish: Finish | None,
        x: torch.Tensor,
        residual: torch.Tensor,
    ) -> torch.Tensor:
        """From such shares, and from `residual`, to the gradient to `x`."""
        norm, out = self.norms[names], torch.empty_like(x)

        def read(rows: slice, shares: Shares) -> None:
            given = x[rows], norm.weight, norm.eps, out[rows]
            kernels.norm_backward(residual[rows], shares, *given)

        self.sums.read(share, read, finish)
        return out
