"""A pass over a micro-batch, of training or of an evaluation, as CUDA graphs, which the host starts
and does not perform.

A pass launches thousands of kernels, and to launch one takes a host about as long as to compute it
takes a GPU that has a thousand tokens: with small micro-batches the GPU waits for its host. A CUDA
graph is the record of such launches, repeated by one call, on the same addresses. So inputs are put
into tensors that stay where they are, of sizes that are rounded up; what a rounded size has too
much is one more document, of which no position is supervised (`captured_inputs.py`).

Shapes: T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from llama.fused.block import INPUTS
from llama.fused.captured_inputs import Inputs, Shape, is_watched, mode_of, shape_of, side_paths
from llama.fused.install import is_installed
from llama.fused.mirrored import Mirrored
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.kv_cache import KVCache
from llama.model.transformer import RunModel, Supervision, Transformer
from llama.parallel.dropout import Seeds, seeds_from
from llama.parallel.sharded import is_sharded

_FOREACH_COPY: Any = torch._foreach_copy_  # type: ignore[attr-defined]
MOST = 32
"""Shapes of training that are captured, and as many of evaluations; others run kernel by kernel.
Each takes some megabytes of its own."""
CAPTURE: dict[str, Any] = {"capture_error_mode": "thread_local"}
"""DeepSpeed's watchdogs may ask the device something meanwhile: only this thread is bound."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a recording ended so: one that memory broke off may not end well either."""
    kind = torch.OutOfMemoryError
    return isinstance(error, kind) or isinstance(error.__context__, kind)


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
        with torch.enable_grad(), seeds_from(self.seeds):
            with torch.cuda.graph(self._forward, pool=pool, **CAPTURE):
                loss = functional_call(_Called(model, run), leaves, inputs.arguments())
                results.loss.copy_(loss.detach())
            with torch.cuda.graph(self._backward, pool=pool, **CAPTURE):
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


class _RecordedLoss:
    """The graph of one shape of an evaluation. It lies in the memory of training's: one pass's
    activations have no use once another has begun, and `_Pass` sees that none has."""

    def __init__(
        self, model: Transformer, run: RunModel, inputs: Inputs, results: _Results, pool: Any
    ) -> None:
        self.inputs, self.results = inputs, results
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, **CAPTURE):
            results.loss.copy_(run(model, *inputs.arguments()))

    def forward(self) -> torch.Tensor:
        self.results.passes += 1
        self._graph.replay()
        return self.results.loss.clone()


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
    """Calls a model as `run_model` did. A shape of batches is captured when it comes for the second
    time: the first has made all kernels that are compiled when they are called."""

    def __init__(self, model: Transformer, trained: Mapping[str, nn.Parameter]) -> None:
        self._run = model.run_model
        self._trained = dict(trained)
        self._paths = side_paths(model)
        self._seen: Counter[Shape] = Counter()
        self._recorded: dict[Shape, _Recorded] = {}
        self._losses: dict[Shape, _RecordedLoss] = {}
        self._results: _Results | None = None
        self._pool: Any = None
        self._places: list[int] = []
        self._evaluates = True
        """Whether evaluations are captured: until memory did not hold one."""
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
        mode = mode_of(model, self._paths)
        asked = cache is None and model.training == torch.is_grad_enabled()
        if labels is None or not asked or is_watched(model) or Kept.HOST in mode.kept:
            return self._run(model, tokens_T, positions_T, documents, labels, cache, last)
        shape = shape_of(documents, len(labels.index_N), mode)
        self._forget_if_moved()
        found = self._training(model, shape) if mode.trains else self._evaluation(model, shape)
        if found is None:
            return self._run(model, tokens_T, positions_T, documents, labels, cache, last)
        found.inputs.fill(tokens_T, positions_T, documents, labels)
        if isinstance(found, _RecordedLoss):
            return found.forward()
        found.seeds.draw()
        trained = self._trained.values()
        if self.onto is not None and not any(p._backward_hooks for p in trained):
            return _Pass.apply(found, self.onto, self.onto.leaf)  # type: ignore[return-value]
        return _Pass.apply(found, None, *trained)  # type: ignore[return-value]

    def forget(self) -> int:
        """Let go of all that is recorded, with its memory, and say how many passes it has served.
        Shapes are then new again: what comes next may be another way through the model."""
        served = self._results.passes if self._results is not None else 0
        self._recorded.clear()
        self._losses.clear()
        self._seen.clear()
        self._results = self._pool = None
        return served

    def _forget_if_moved(self) -> None:
        """A graph goes by addresses: where a parameter was given other memory, it is of no use."""
        places = [p.data_ptr() for p in self._trained.values()]
        if places != self._places:
            self._recorded.clear()
            self._losses.clear()
            self._places = places

    def _training(self, model: Transformer, shape: Shape) -> _Recorded | None:
        """What is recorded of `shape`, now if it is due. OutOfMemoryError where there is no room:
        what is kept is then to be less."""
        if shape in self._recorded or not self._is_due(shape, len(self._recorded)):
            return self._recorded.get(shape)
        inputs, results, pool = self._room(model, shape)
        try:
            recorded = _Recorded(model, self._run, inputs, self._trained, results, pool)
        except RuntimeError as error:
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        self._recorded[shape] = recorded
        return recorded

    def _evaluation(self, model: Transformer, shape: Shape) -> _RecordedLoss | None:
        """The same without a backward pass. Nothing is recorded before a training pass is: its
        memory, which holds more than an evaluation, serves both, and a first step that is launched
        has what memory it was planned with. Where there is no room evaluations go on without."""
        if shape in self._losses or not self._is_due(shape, len(self._losses)):
            return self._losses.get(shape)
        if not self._evaluates or not self._recorded:
            return None
        try:
            inputs, results, pool = self._room(model, shape)
            self._losses[shape] = _RecordedLoss(model, self._run, inputs, results, pool)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._evaluates = False
        if not self._evaluates:
            self.forget()  # what the pool took for this recording is free only with the pool
        return self._losses.get(shape)

    def _is_due(self, shape: Shape, recorded: int) -> bool:
        self._seen[shape] += 1
        return self._seen[shape] > 1 and recorded < MOST

    def _room(self, model: Transformer, shape: Shape) -> tuple[Inputs, _Results, Any]:
        device = model.tok_embeddings.weight.device
        if self._results is None:
            self._results = _Results(list(self._trained.values()), device)
            self._pool = torch.cuda.graph_pool_handle()
        return Inputs(shape, device), self._results, self._pool


def capture(model: Transformer) -> str | None:
    """Have the passes of `model` over micro-batches captured, and a note why not where they cannot
    be. Call it after `install`, once the model keeps what it is to keep."""
    if reason := _uncaptured(model):
        return f"steps are not captured as CUDA graphs: {reason}"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.run_model = RunCaptured(model, trained)
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
