"""A training pass over a micro-batch as CUDA graphs, which the host starts and does not perform.

A pass launches thousands of kernels, and to launch one takes a host about as long as to compute it
takes a GPU that has a thousand tokens: with small micro-batches the GPU waits for its host. A CUDA
graph is the record of such launches, repeated by one call, on the same addresses. So inputs are put
into tensors that stay where they are, of sizes that are rounded up; what a rounded size has too
much is one more document, of which no position is supervised.

Shapes: T tokens, N supervised positions, both with their rounding up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from llama.fused.block import INPUTS
from llama.fused.install import is_installed
from llama.fused.mirrored import Mirrored
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.kv_cache import KVCache
from llama.model.transformer import RunModel, Supervision, Transformer
from llama.parallel.dropout import Seeds, seeds_from
from llama.parallel.sharded import is_sharded

_FOREACH_COPY: Any = torch._foreach_copy_  # type: ignore[attr-defined]
TILE = 128
"""Sizes are multiples of it: rows of the products' and the attention's tiles."""
PARTS = 8
"""A size above `PARTS` tiles is rounded up by at most an eighth; the supervised positions to a
multiple of an eighth of the tokens, so that there are few pairs of the two."""
FEWEST_DOCUMENTS = 16
MOST = 32
"""Shapes that are captured; others run kernel by kernel. Each takes some megabytes of its own."""
IGNORED = -1
"""A label that counts for nothing."""


@dataclass(frozen=True)
class Shape:
    """What two micro-batches must have in common for one graph to serve both."""

    tokens: int
    supervised: int
    documents: int
    """Room for so many, the one that fills up among them; of a plain batch of rows of one length
    that is a multiple of the tiles, how many there are."""
    length: int | None
    """Of such a row."""
    kept: tuple[Kept, ...]


def rounded(size: int) -> int:
    """`size` or the next larger one that is captured."""
    step = TILE
    while size > 2 * PARTS * step:
        step *= 2
    return _up(size, step)


def shape_of(documents: Documents, supervised: int, kept: Sequence[Kept]) -> Shape:
    tokens, length, number = documents.boundaries[-1], documents.longest, len(documents)
    if not documents.uniform or length % (2 * TILE):
        tokens, length, needed, number = rounded(tokens), None, number + 1, FEWEST_DOCUMENTS
        while number < needed:
            number *= 2
    return Shape(tokens, _up(supervised, -(-tokens // PARTS)), number, length, tuple(kept))


def _up(size: int, step: int) -> int:
    """The next multiple of `step`, and at least one of it."""
    return -(-max(size, 1) // step) * step


class _Placed(Documents):
    """Documents whose bounds are read from a tensor that is written anew for each pass."""

    def __init__(self, shape: Shape, ends: torch.Tensor) -> None:
        super().__init__((0, 1, shape.tokens))  # of unlike lengths, whatever they are
        self.longest = shape.tokens
        self._ends = ends


class Inputs:
    """A micro-batch in tensors that stay where they are."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.tokens_T = torch.zeros(shape.tokens, dtype=torch.int64, device=device)
        self.positions_T = torch.zeros_like(self.tokens_T)
        self.index_N = torch.zeros(shape.supervised, dtype=torch.int64, device=device)
        self.labels_N = torch.full_like(self.index_N, IGNORED)
        self.ends = torch.zeros(shape.documents + 1, dtype=torch.int32, device=device)
        if shape.length is None:
            self.documents: Documents = _Placed(shape, self.ends)
        else:
            self.documents = Documents(range(0, shape.tokens + 1, shape.length))

    def fill(
        self,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        documents: Documents,
        labels: Supervision,
    ) -> None:
        """Put in another micro-batch of the same `Shape`. What it leaves of the tokens is whatever
        lay there: one more document, which is attended to by itself and supervised nowhere."""
        tokens, supervised = len(tokens_T), len(labels.index_N)
        self.tokens_T[:tokens].copy_(tokens_T)
        self.positions_T[:tokens].copy_(positions_T)
        self.index_N[:supervised].copy_(labels.index_N)
        self.labels_N[:supervised].copy_(labels.labels_N)
        self.labels_N[supervised:].fill_(IGNORED)
        if self.shape.length is None:
            free = len(self.ends) - len(documents.boundaries)
            bounds = (*documents.boundaries, *[self.shape.tokens] * free)
            self.ends.copy_(torch.tensor(bounds, dtype=torch.int32))

    def arguments(self) -> tuple[Any, ...]:
        """Those of a `RunModel`, after the model."""
        labels = Supervision(self.index_N, self.labels_N)
        return self.tokens_T, self.positions_T, self.documents, labels, None, False


class _Results:
    """What the graphs of all shapes leave, one after the other, in the same place."""

    def __init__(self, trained: Sequence[nn.Parameter], device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float32, device=device)
        self.upstream = torch.ones((), dtype=torch.float32, device=device)
        """The gradient of the loss, which the backward pass begins from."""
        self.gradients = Mirrored(trained)
        self.passes = 0
        """Forward passes so far: whose activations the memory holds."""


class _Called(nn.Module):
    """`run(model, ...)` as a module's call, whose parameters others may stand for."""

    def __init__(self, model: Transformer, run: RunModel) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self, *arguments: Any) -> torch.Tensor:
        return self._run(self.model, *arguments)


class _Recorded:
    """The two graphs of one shape: a forward and a backward pass."""

    def __init__(
        self,
        model: Transformer,
        run: RunModel,
        inputs: Inputs,
        trained: Mapping[str, nn.Parameter],
        results: _Results,
        pool: Any,
    ) -> None:
        self.inputs, self.results = inputs, results
        self.seeds = Seeds(len(INPUTS) * len(model.layers), inputs.tokens_T.device)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # The parameters' own nodes in autograd's graph belong to the stream that they were made on,
        # which cannot be captured and would be waited for. The same memory under other names:
        leaves = {f"model.{name}": p.detach().requires_grad_() for name, p in trained.items()}
        # DeepSpeed's watchdogs may ask the device something meanwhile: only this thread is bound.
        mode = {"pool": pool, "capture_error_mode": "thread_local"}
        with torch.enable_grad(), seeds_from(self.seeds):
            with torch.cuda.graph(self._forward, **mode):
                loss = functional_call(_Called(model, run), leaves, inputs.arguments())
                results.loss.copy_(loss.detach())
            with torch.cuda.graph(self._backward, **mode):
                found = torch.autograd.grad(loss, list(leaves.values()), results.upstream)
                _FOREACH_COPY(results.gradients.parts, list(found))

    def forward(self) -> torch.Tensor:
        self.results.passes += 1
        self._forward.replay()
        return self.results.loss.clone()

    def backward(self, upstream: torch.Tensor) -> Mirrored:
        """The gradients, which the next call writes over."""
        self.results.upstream.copy_(upstream)
        self._backward.replay()
        return self.results.gradients


class _Pass(torch.autograd.Function):
    """A recorded pass, as autograd sees it. Its gradients are added to `onto`, or without that
    given to autograd for each tensor that trains."""

    @staticmethod
    def forward(
        ctx: Any, recorded: _Recorded, onto: Mirrored | None, *leaves: torch.Tensor
    ) -> torch.Tensor:
        loss = recorded.forward()
        ctx.recorded, ctx.number, ctx.onto = recorded, recorded.results.passes, onto
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        recorded = ctx.recorded
        if ctx.number != recorded.results.passes:
            raise RuntimeError("another pass has taken the memory of this one's activations")
        gradients = recorded.backward(grad_outputs[0])
        if ctx.onto is not None:
            ctx.onto.add_(gradients)
            return None, None, None
        return None, None, *(part.clone() for part in gradients.parts)


class RunCaptured:
    """Calls a model as `run` does. A shape of training batches is captured when it comes for the
    second time: the first has made all kernels that are compiled when they are called."""

    def __init__(self, run: RunModel, trained: Mapping[str, nn.Parameter]) -> None:
        self._run = run
        self._trained = dict(trained)
        self._seen: Counter[Shape] = Counter()
        self._recorded: dict[Shape, _Recorded] = {}
        self._results: _Results | None = None
        self._pool: Any = None
        self._places: list[int] = []
        self.onto: Mirrored | None = None
        """Where gradients are added up, past autograd; None, and wherever a hook of a tensor waits
        for its gradient: autograd is given them."""

    def __call__(
        self,
        model: Transformer,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        documents: Documents,
        labels: Supervision | None,
        cache: KVCache | None,
        last: bool,
    ) -> torch.Tensor:
        training = model.training and torch.is_grad_enabled() and labels is not None
        watched = any(block._forward_hooks for block in model.layers)
        if not training or watched or labels is None or Kept.HOST in model.kept:
            return self._run(model, tokens_T, positions_T, documents, labels, cache, last)
        shape = shape_of(documents, len(labels.index_N), model.kept)
        self._forget_if_moved()
        recorded = self._recorded.get(shape)
        if recorded is None and self._is_due(shape):
            recorded = self._record(model, shape, tokens_T.device)
        if recorded is None:
            return self._run(model, tokens_T, positions_T, documents, labels, cache, last)
        recorded.inputs.fill(tokens_T, positions_T, documents, labels)
        recorded.seeds.draw()
        trained = self._trained.values()
        if self.onto is not None and not any(p._backward_hooks for p in trained):
            return _Pass.apply(recorded, self.onto, self.onto.leaf)  # type: ignore[return-value]
        return _Pass.apply(recorded, None, *trained)  # type: ignore[return-value]

    def forget(self) -> int:
        """Let go of all that is recorded, with its memory, and say how many passes it has served.
        Shapes are then new again: what comes next may be another way through the model."""
        served = self._results.passes if self._results is not None else 0
        self._recorded.clear()
        self._seen.clear()
        self._results = self._pool = None
        return served

    def _is_due(self, shape: Shape) -> bool:
        self._seen[shape] += 1
        return self._seen[shape] > 1 and len(self._recorded) < MOST

    def _forget_if_moved(self) -> None:
        """A graph goes by addresses: where a parameter was given other memory, it is of no use."""
        places = [p.data_ptr() for p in self._trained.values()]
        if places != self._places:
            self._recorded.clear()
            self._places = places

    def _record(self, model: Transformer, shape: Shape, device: torch.device) -> _Recorded:
        if self._results is None:
            self._results = _Results(list(self._trained.values()), device)
            self._pool = torch.cuda.graph_pool_handle()
        inputs = Inputs(shape, device)
        places = (self._trained, self._results, self._pool)
        try:
            recorded = _Recorded(model, self._run, inputs, *places)
        except RuntimeError as error:  # a recording that memory broke off may not end well either
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        self._recorded[shape] = recorded
        return recorded


def capture(model: Transformer) -> str | None:
    """Have the training passes of `model` captured, and a note why not where they cannot be. Call
    it after `install`, once the model keeps what it is to keep."""
    if reason := _uncaptured(model):
        return f"steps are not captured as CUDA graphs: {reason}"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.run_model = RunCaptured(model.run_model, trained)
    return None


def add_gradients(model: Transformer, onto: Mirrored) -> None:
    """Have captured passes of `model` add their gradients to `onto`."""
    assert isinstance(model.run_model, RunCaptured)
    model.run_model.onto = onto


def _uncaptured(model: Transformer) -> str | None:
    if not is_installed(model) or len(model.run_block.covered) < len(model.layers):  # type: ignore
        return "not all blocks are fused"
    if model.tok_embeddings.tp.size > 1:
        return "tensor-parallel ranks exchange within a pass"
    if model.tok_embeddings.weight.dtype == torch.float32:
        return "attention to documents of several lengths is not one kernel in float32"
    if is_sharded(model.tok_embeddings.weight):
        return "the base is sharded over ranks"
    if Kept.HOST in model.kept:
        return "block inputs are copied to host memory"
    return None
