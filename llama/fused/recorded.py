"""A pass recorded as CUDA graphs, and repeated.

A graph goes by addresses, so what it reads and writes stays where it is. All graphs lie in one
memory, and leave what they find in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.func import functional_call

from llama.fused.block import INPUTS
from llama.fused.captured_inputs import Inputs
from llama.fused.mirrored import Mirrored
from llama.model.transformer import RunModel, Transformer
from llama.parallel.dropout import Seeds, seeds_from
from llama.parallel.mesh import TensorParallel

T = TypeVar("T")

_FOREACH_ADD: Any = torch._foreach_add_  # type: ignore[attr-defined]
TOGETHER = 32
"""Gradients that are added at once: some blocks' of adapters."""
CAPTURE: dict[str, Any] = {"capture_error_mode": "thread_local"}
"""DeepSpeed's watchdogs may ask the device something meanwhile: only this thread is bound."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a recording ended so: one that memory broke off may not end well either."""
    kind = torch.OutOfMemoryError
    return isinstance(error, kind) or isinstance(error.__context__, kind)


REFUSED, NO_MEMORY = 1, 2


def recorded_by_all(tp: TensorParallel, make: Callable[[], T]) -> T:
    """What `make` records. Tensor-parallel ranks go through one pass together, so that where one of
    them cannot record it none does: the error is one of memory on all of them if it is on any."""
    try:
        found = make()
    except Exception as error:
        full = isinstance(error, RuntimeError) and is_out_of_memory(error)
        worst = tp.highest(failed := NO_MEMORY if full else REFUSED)
        if worst == failed:
            raise
    else:
        if not (worst := tp.highest(0)):
            return found
        del found
    # Raised here, where the own error is none that it would have come of.
    other = "a tensor-parallel rank could not record a pass"
    raise torch.OutOfMemoryError(other) if worst == NO_MEMORY else RuntimeError(other)


class Beside(Protocol):
    """What has work of a pass beside what is computed. A graph waits for none that was begun before
    it, and leaves none under way; and what it has found is good within the pass alone."""

    def settle(self) -> None:
        """Have nothing under way for what is computed from here on."""
        ...

    def forget(self) -> None:
        """Let go of what was found, and of what a recording that failed has left under way."""
        ...

    def held(self) -> Any:
        """What a graph has the addresses of, to be held for as long as it is."""
        ...


class Results:
    """What the graphs of all shapes leave, one after the other, in the same place."""

    def __init__(self, gradients: Mirrored, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float32, device=device)
        self.upstream = torch.ones((), dtype=torch.float32, device=device)
        """The gradient of the loss, which the backward pass begins from."""
        self.gradients = gradients
        """Where those of every pass are added."""
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


_BROKEN_OFF: list[tuple[torch.cuda.CUDAGraph, Any]] = []
"""Recordings that could not be ended, and their pools. The allocator of pinned memory may still ask
them whether they go on."""


def is_usable(pool: Any) -> bool:
    """Whether passes can be recorded in `pool`. Not once a recording there could not be ended: the
    allocator of pinned memory takes it to go on, and begins no other."""
    return pool is not None and all(pool != broken for _, broken in _BROKEN_OFF)


@contextmanager
def recording(
    graph: torch.cuda.CUDAGraph, pool: Any, beside: Sequence[Beside] = ()
) -> Iterator[None]:
    """Within, `graph` is recorded, with its memory in `pool`. After one that fails the stream that
    was current is so again, and the allocator gives memory back as before.

    By itself torch leaves that undone where a recording cannot be ended: the recording's stream
    stays the current one (`torch/cuda/graphs.py`, `graph.__exit__`), and the allocator takes it to
    go on, and gives back nothing that it has cached (`CUDAGraph.cpp`, `capture_end`). What is not
    mended here: the device's default generator, from which nothing is drawn.

    Libraries of matrix products have room of their own for every stream and thread that calls them,
    32 MiB on Hopper, and would keep it. Of launched passes it is given back before, as are those
    passes' other tensors; what a graph has lies in the pool, and is the next one's as well."""
    stream = torch.cuda.current_stream()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        with torch.cuda.graph(graph, pool=pool, **CAPTURE):
            for other in beside:
                other.settle()
            yield
            for other in beside:
                other.settle()
            torch._C._cuda_clearCublasWorkspaces()
    except BaseException:
        torch.cuda.set_stream(stream)
        with suppress(RuntimeError):  # the first raises it where the recording was ended after all
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
            torch._C._cuda_releasePool(stream.device_index, pool)
            _BROKEN_OFF.append((graph, pool))
        torch._C._cuda_clearCublasWorkspaces()
        raise


def add_as_they_come(
    leaves: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]
) -> Callable[[], None]:
    """Have the gradients of a backward pass to `leaves` added to `parts`, some at a time, so that
    never all of them are there. Gives what is to be called after the pass."""
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add() -> None:
        if waiting:
            _FOREACH_ADD(*map(list, zip(*waiting, strict=True)))
            waiting.clear()

    def came(part: torch.Tensor, leaf: torch.Tensor) -> None:
        assert leaf.grad is not None
        waiting.append((part, leaf.grad))
        leaf.grad = None
        if len(waiting) == TOGETHER:
            add()

    for leaf, part in zip(leaves, parts, strict=True):
        leaf.register_post_accumulate_grad_hook(partial(came, part))
    return add


class Recorded:
    """The two graphs of one shape: a forward and a backward pass."""

    def __init__(
        self,
        model: Transformer,
        run: RunModel,
        inputs: Inputs,
        trained: Mapping[str, nn.Parameter],
        results: Results,
        pool: Any,
        beside: Sequence[Beside],
    ) -> None:
        self.inputs, self.results = inputs, results
        self.seeds = Seeds(len(INPUTS) * len(model.layers), inputs.tokens_T.device)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # The parameters' own nodes in autograd's graph belong to the stream that they were made on,
        # which cannot be captured and would be waited for. The same memory under other names:
        leaves = {f"model.{name}": p.detach().requires_grad_() for name, p in trained.items()}
        add = add_as_they_come(list(leaves.values()), results.gradients.parts)
        with torch.enable_grad(), seeds_from(self.seeds):
            with recording(self._forward, pool, beside):
                loss = functional_call(_Called(model, run), leaves, inputs.arguments())
                results.loss.copy_(loss.detach())
            with recording(self._backward, pool, beside):
                loss.backward(results.upstream)
                add()
        self._held = [other.held() for other in beside]

    def forward(self) -> torch.Tensor:
        self.results.passes += 1
        self._forward.replay()
        return self.results.loss.clone()

    def backward(self, upstream: torch.Tensor) -> None:
        """Adds the gradients to those of the passes before."""
        self.results.upstream.copy_(upstream)
        self._backward.replay()


class RecordedPass(torch.autograd.Function):
    """A recorded pass, as autograd sees it. Its gradients are added where those of all passes are;
    `given`: autograd is to have them as well, for each tensor that trains."""

    @staticmethod
    def forward(ctx: Any, recorded: Recorded, given: bool, *leaves: torch.Tensor) -> torch.Tensor:
        loss = recorded.forward()
        ctx.recorded, ctx.number, ctx.given = recorded, recorded.results.passes, given
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        recorded, ctx.recorded = ctx.recorded, None  # else its graphs stay while the loss is held
        if recorded is None:
            raise RuntimeError("this pass has gone back already")
        if ctx.number != recorded.results.passes:
            raise RuntimeError("another pass has taken the memory of this one's activations")
        results = recorded.results
        if not ctx.given:
            recorded.backward(grad_outputs[0])
            return None, None, None
        results.gradients.zero_()
        recorded.backward(grad_outputs[0])
        return None, None, *(part.clone() for part in results.gradients.parts)


class RecordedLoss:
    """The graph of one shape of an evaluation. It lies in the memory of training's: one pass's
    activations have no use once another has begun, and `RunCaptured` sees that none has."""

    def __init__(
        self,
        model: Transformer,
        run: RunModel,
        inputs: Inputs,
        results: Results,
        pool: Any,
        beside: Sequence[Beside],
    ) -> None:
        self.inputs, self.results = inputs, results
        self._graph = torch.cuda.CUDAGraph()
        with recording(self._graph, pool, beside):
            results.loss.copy_(run(model, *inputs.arguments()))
        self._held = [other.held() for other in beside]

    def forward(self) -> torch.Tensor:
        self.results.passes += 1
        self._graph.replay()
        return self.results.loss.clone()
