"""Which parameters ZeRO-3 has gathered at any moment of a step.

DeepSpeed gathers a module's parameters before its forward and its backward pass, some of those that
come next ahead of time, and lets go of what is not used again soon. It knows what comes next
because it has recorded the order of a step. The rules were read in 0.19.8:
`runtime/zero/partitioned_param_coordinator.py` and `partition_parameters.py`. Where one rank holds
all, nothing is gathered, and none of this is asked.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from llama.planning.job import Job

Room = Callable[[int], torch.Tensor]
"""Takes memory for so many elements of the parameters' type."""


class _Flight:
    """Parameters that are being gathered in one flat tensor, out of which each is then copied. The
    flat tensor stays for as long as any of them waits to be used."""

    def __init__(self, parameters: list[nn.Parameter], flat: torch.Tensor | None) -> None:
        self.parameters, self.flat = parameters, flat
        self.landed = False


class Gathering:
    """Told of each module as it is entered and left; holds the rooms of what is gathered."""

    def __init__(self, job: Job, model: nn.Module, room: Room) -> None:
        self._zero, self._ranks, self._room = job.zero, job.data_parallel, room
        self._shape = {p: p.shape for p in model.parameters()}
        self._persistent = {p for p in self._shape if p.numel() <= job.zero.persistent}
        self.recording = True
        """In the first pass nothing is gathered: the order of modules is noted."""
        self._order: list[nn.Module] = []
        self._there: set[nn.Parameter] = set(self._shape)
        self._in_flight: dict[nn.Parameter, _Flight] = {}
        self._active: dict[nn.Parameter, set[nn.Module]] = defaultdict(set)
        self._recomputed: dict[nn.Module, set[nn.Parameter]] = defaultdict(set)
        self._fetched_for: dict[nn.Parameter, int] = defaultdict(lambda: -1)
        self._backward: dict[nn.Module, None] = {}  # those within, in order
        self.begin()
        for module in model.modules():
            _hook(module, self)

    # A micro-batch, and the end of a step

    def begin(self) -> None:
        """Of the forward pass of a micro-batch."""
        self._step = self._available = 0
        self._fetched_for.clear()
        self._queue = deque(
            (p, step) for step, module in enumerate(self._order) for p in _own(module)
        )

    def end_of_recording(self) -> None:
        """The order is known, and what always stays is gathered."""
        self.recording = False
        self.step_ended()

    def step_ended(self) -> None:
        """All but what always stays is let go of; what stays is gathered anew."""
        self._in_flight.clear()
        self._active.clear()
        for parameter in list(self._there):
            self._empty(parameter)
        for parameter in self._persistent:
            self._fill(parameter, self._room(self._aligned(parameter)))

    def backward_ended(self) -> None:
        """What modules hold whose backward pass was never left, as no gradient was asked for."""
        while self._backward:
            module, _ = self._backward.popitem()
            for parameter in {*_own(module), *self._recomputed.pop(module, ())}:
                self._active[parameter].discard(module)
                if parameter not in self._persistent:
                    self._release(parameter)

    # A module

    def enter(self, module: nn.Module, forward: bool) -> None:
        """Its forward or its backward pass begins."""
        if self.recording:
            self._order.append(module)
            return
        if not forward:
            self._backward[module] = None
        own = _own(module)
        self._gather(p for p in own if not self._is_there(p))
        computed_again = forward and torch._C._current_graph_task_id() != -1
        for parameter in own:
            self._active[parameter].add(module)
            if computed_again and self._backward and not parameter.requires_grad:
                self._recomputed[next(reversed(self._backward))].add(parameter)
            if flight := self._in_flight.pop(parameter, None):
                self._land(flight)
        self._prefetch(own)
        self._step += 1

    def leave(self, module: nn.Module, forward: bool) -> None:
        """Its forward or its backward pass has ended."""
        if self.recording:
            return
        own, going = set(_own(module)), self._not_used_soon(module)
        if not forward:
            again = self._recomputed.pop(module, set())
            going |= again - self._persistent
            own |= again
            self._backward.pop(module, None)
        for parameter in own:
            self._active[parameter].discard(module)
            if parameter in going:
                self._release(parameter)

    # Gathering and letting go

    def _aligned(self, parameter: nn.Parameter) -> int:
        return -(-self._size(parameter) // self._ranks) * self._ranks

    def _size(self, parameter: nn.Parameter) -> int:
        return self._shape[parameter].numel()

    def _fill(self, parameter: nn.Parameter, flat: torch.Tensor) -> None:
        """It is computed with where it was gathered: what autograd saves of it holds that."""
        size, shape = self._size(parameter), self._shape[parameter]
        parameter.data = flat[:size].view(shape)
        self._there.add(parameter)

    def _empty(self, parameter: nn.Parameter) -> None:
        parameter.data = self._room(0)
        self._there.discard(parameter)

    def _is_there(self, parameter: nn.Parameter) -> bool:
        return parameter in self._there or parameter in self._in_flight

    def _gather(self, parameters: Iterable[nn.Parameter]) -> None:
        missing = list(parameters)
        if not missing:
            return
        self._available += sum(map(self._size, missing))
        flat = self._room(sum(map(self._aligned, missing)))
        if len(missing) == 1:  # it is used where it was gathered
            self._fill(missing[0], flat)
            return
        flight = _Flight(missing, flat)
        self._in_flight.update(dict.fromkeys(missing, flight))

    def _land(self, flight: _Flight) -> None:
        if not flight.landed:
            flight.landed = True
            for parameter in flight.parameters:
                self._fill(parameter, self._room(self._size(parameter)))

    def _release(self, parameter: nn.Parameter) -> None:
        waiting = parameter in self._in_flight and not self._in_flight[parameter].landed
        if parameter in self._there and not waiting and not self._active[parameter]:
            self._empty(parameter)
            self._available -= self._size(parameter)

    def _prefetch(self, own: list[nn.Parameter]) -> None:
        new = {p for p in own if self._fetched_for[p] < self._step}
        seen: set[nn.Parameter] = set()
        while self._queue and len(seen) < len(new):
            parameter, self._fetched_for[parameter] = self._queue.popleft()
            seen.add(parameter)
        most = min(self._zero.max_live - self._available, self._zero.prefetch)
        ahead: dict[nn.Parameter, None] = {}
        size = 0
        while self._queue and size < most:
            parameter, step = self._queue.popleft()
            self._fetched_for[parameter] = max(self._fetched_for[parameter], step)
            if not self._is_there(parameter) and parameter not in ahead:
                ahead[parameter] = None
                size += self._size(parameter)
        self._gather(ahead)

    def _not_used_soon(self, module: nn.Module) -> set[nn.Parameter]:
        going = {
            p
            for p in _own(module)
            if p not in self._persistent and self._fetched_for[p] <= self._step
        }
        passed = 0
        for following in self._order[self._step :]:
            if passed >= self._zero.max_reuse or not going:
                break
            for parameter in _own(following):
                going.discard(parameter)
                passed += self._size(parameter)
        return going


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(dict.fromkeys(module.parameters(recurse=False)))


# Where a module's passes begin and end, as `parameter_offload.py` finds out: by functions that do
# nothing, around its inputs and its outputs, whose backward passes come after and before its own.


def _hook(module: nn.Module, gathering: Gathering) -> None:
    remaining = [0]

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        gathering.enter(module, forward=True)
        remaining[0] = 0
        return _marked(inputs, after_backward)

    def after(_: nn.Module, inputs: Any, output: Any) -> Any:
        gathering.leave(module, forward=True)
        return _marked((output,), before_backward)[0]

    def before_backward(made: bool) -> None:
        if not made:
            gathering.enter(module, forward=False)

    def after_backward(made: bool) -> None:
        remaining[0] += 1 if made else -1
        if not made and remaining[0] == 0:
            gathering.leave(module, forward=False)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _marked(tensors: tuple[Any, ...], tell: Callable[[bool], None]) -> tuple[Any, ...]:
    return tuple(_Mark.apply(x, tell) if isinstance(x, torch.Tensor) else x for x in tensors)


class _Mark(torch.autograd.Function):
    """The identity; tells when it is made on what needs a gradient, and of its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tell: Callable[[bool], None]) -> torch.Tensor:
        if ctx.needs_input_grad[0]:
            tell(True)
        ctx.tell = tell
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        ctx.tell(False)
        return grad_outputs[0], None
