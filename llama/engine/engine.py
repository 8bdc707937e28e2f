"""A model with adapters under DeepSpeed: one optimizer step at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from llama.adapters.attach import fixed_parameters, parameter_groups, trainable_parameters
from llama.data.batches import own_part
from llama.data.types import Batch
from llama.engine.again import KeepLess, Room
from llama.engine.at_device import decide_at_device
from llama.engine.backend import LOGGER
from llama.engine.configuration import configuration, with_fused_adam
from llama.engine.gradients import check_all_at_once, norm_of
from llama.engine.hand_over import hand_over_to
from llama.engine.loss_scale import keep_scale_through_steps
from llama.engine.nonfinite import Finding, advice_on, first_nonfinite, what_was_first
from llama.engine.optimizer_state import Held, OptimizerState, Source
from llama.engine.owners import send_gradients_to_owners
from llama.engine.parts import Parts
from llama.engine.rates import with_lists, with_rates
from llama.engine.replicas import differing
from llama.engine.state import MOMENTS, EngineState, Tensors
from llama.engine.step import Step, dropout_seed, seed_generators
from llama.engine.window import Apart, ByDeepSpeed, Window
from llama.engine.zero3 import gathered
from llama.errors import TrainingError
from llama.fused.mirrored import Mirrored
from llama.objectives.kinds import SFT
from llama.objectives.objective import Objective
from llama.parallel.layers import joined, share_of
from llama.parallel.mesh import DeepSpeedTopology, Mesh
from llama.parallel.shares import optimized_elements, whole_elements
from llama.settings.deepspeed_json import Resolved

MOST_SKIPPED = 10
"""Steps skipped in a row after which the run stops, where no loss scale adapts. With one it stops
where the scale cannot fall further."""


class Engine:
    """A model with adapters under DeepSpeed. Only what requires a gradient is optimized."""

    def __init__(
        self,
        model: nn.Module,
        resolved: Resolved,
        mesh: Mesh,
        device: torch.device,
        seed: int,
        objective: Objective = SFT,
    ) -> None:
        """Hand `model` to DeepSpeed; `seed` is that of the dropout."""
        self.mesh = mesh
        self.device = device
        self.seed = seed
        self._objective = objective
        self.steps = 0
        """Optimizer steps taken, skipped ones included."""
        self.skipped = 0
        self._gathered: Tensors | None = None
        self._skipped_in_a_row = 0
        self._scale_is_spent = False
        self.zero_stage = resolved.zero_stage
        self.trainable = trainable_parameters(model)
        self._fixed = fixed_parameters(model)
        groups = parameter_groups(model)
        self.optimized_elements = optimized_elements(
            groups, self.zero_stage, mesh.data_parallel_size
        )
        """Elements whose float32 master and two moments this rank's optimizer should hold."""
        initialize: Any = deepspeed.initialize  # its annotations are narrower than what it takes
        LOGGER.setLevel(logging.ERROR)  # it asks its own schedule for a rate too early, and warns
        self._engine, self._optimizer, _, self._schedule = initialize(
            model=model,
            model_parameters=with_rates(groups, resolved.engine["optimizer"]["params"]["lr"]),
            config=with_lists(groups, with_fused_adam(configuration(resolved, mesh), device)),
            mpu=DeepSpeedTopology(mesh),
            dist_init_required=False,
        )
        LOGGER.setLevel(logging.WARNING)
        if check_all_at_once(self._optimizer):
            decide_at_device(self._optimizer)
        keep_scale_through_steps(self._optimizer)
        send_gradients_to_owners(self._optimizer)
        self.model: nn.Module = self._engine.module
        self._window: Window = ByDeepSpeed(self._engine)
        self._state = OptimizerState(self.trainable, self._optimizer, self.zero_stage)
        self.parts = Parts(self.trainable, self._state, mesh, device)
        """What this rank keeps of the state: for states that are too large to be gathered."""

    def add_up_gradients(
        self, keep_less: KeepLess | None = None, looks_for_room: bool = False
    ) -> Mirrored:
        """From now on add up the gradients of a step's micro-batches before DeepSpeed has them: for
        passes that are graphs or gather their weights, which a host that follows each tensor would
        hold up, and for such as are to be taken again where memory runs out, for which `keep_less`
        makes room, for the optimizer's step too if it `looks_for_room`. Gives the place where
        passes may add theirs by themselves."""
        trained = self.trainable.values()
        hand_over = hand_over_to(self._engine, trained)
        room = Room(self.step_bytes, self.device) if looks_for_room else None
        self._window = window = Apart(self.model, trained, hand_over, keep_less, room)
        return window.sum

    def step(self, window: Sequence[Batch]) -> Step:
        """Forward and backward of this rank's micro-batches, of each its share of the tokens, then
        one optimizer step.

        The loss is the sum over all supervised tokens of the window, on every rank, over their
        number: DeepSpeed's division by the accumulation steps is left out and its mean over
        data-parallel ranks undone, so the split into micro-batches and ranks changes nothing.

        Raises `TrainingError` where steps are skipped for ever."""
        # The tokens of a batch that only fills a rank's turn are nobody's.
        real = [bool(self._objective.count(batch)) for batch in window]
        window = [own_part(batch, self.mesh.sequence_parallel) for batch in window]
        supervised, tokens = self._total(
            sum(map(self._objective.count, window)),
            sum(len(b.tokens) for b, counts in zip(window, real, strict=True) if counts),
        )
        self._gathered = None
        weight = self.mesh.data_parallel_size / max(supervised, 1)
        if not self.model.training:
            self._engine.train()
        scale = self._scale()
        loss_sum = self._window.run(window, self._loss, weight, scale)
        loss_sum = self._reduced(loss_sum.double())  # begun before the step is waited for
        rates = self._engine.get_lr()  # of this update: the schedule moves on in the step
        applied, grad_norm = self._take_step()
        reason = None if applied else self._skip(window, weight, scale)
        if applied:
            self._skipped_in_a_row = 0
        self.steps += 1
        return Step(
            loss_sum=float(loss_sum),
            supervised=supervised,
            tokens=tokens,
            learning_rate=float(rates[0]),
            learning_rate_b=float(rates[1]) if len(rates) > 1 else None,
            grad_norm=grad_norm,
            loss_scale=self._scale(),
            applied=applied,
            skip_reason=reason,
        )

    def _loss(self, model: Callable[..., torch.Tensor], batch: Batch) -> torch.Tensor:
        """The summed loss of one micro-batch, with the dropout that belongs to it."""
        seed_generators(dropout_seed(self.seed, self.steps, batch.stream), self.device)
        return self._objective.loss(model, batch, self.device)

    def _scale(self) -> float | None:
        """The loss scale in use, in fp16."""
        return float(self._optimizer.cur_scale) if self._engine.fp16_enabled() else None

    def _take_step(self) -> tuple[bool, float | None]:
        """The optimizer's step at the end of a window: whether it was taken, by all ranks or by
        none, and the gradient's norm before clipping."""
        norm = None
        if self.zero_stage == 0:  # DeepSpeed neither tells the norm here nor looks for NaN
            norm = norm_of(self.trainable.values(), self.mesh.tensor_parallel, self.device)
            if not torch.isfinite(norm):
                self._engine.zero_grad()
                return False, float(norm)
        try:
            self._engine.step()
        except Exception as error:
            if "already at minimum" not in str(error):  # DeepSpeed raises no type of its own
                raise
            self._scale_is_spent = True
            return False, None
        found = self._engine.get_global_grad_norm() if norm is None else norm
        return bool(self._engine.was_step_applied()), None if found is None else float(found)

    # Non-finite steps

    def _skip(self, window: Sequence[Batch], weight: float, scale: float | None) -> str:
        """Account for a skipped step and find out why; `TrainingError` when it is one too many."""
        self.skipped += 1
        self._skipped_in_a_row += 1
        reason = self._diagnose(window, weight, scale)
        adapts = scale is not None and self._optimizer.dynamic_loss_scale
        if not self._scale_is_spent and (adapts or self._skipped_in_a_row < MOST_SKIPPED):
            return reason
        advice = advice_on(self._skipped_in_a_row, scale if self._scale_is_spent else None)
        raise TrainingError(f"step {self.steps + 1}: {reason}; {advice}")

    def _diagnose(self, window: Sequence[Batch], weight: float, scale: float | None) -> str:
        """What went non-finite first, on whichever rank. Every rank takes part. The
        model is called past DeepSpeed, whose own hooks wait for its own backward."""
        factor = weight * (scale or 1.0)
        losses: list[Callable[[], torch.Tensor]] = [
            lambda batch=batch: self._loss(self.model, batch) * factor for batch in window
        ]
        exchanges = self.mesh.exchanges or self.zero_stage == 3
        own = first_nonfinite(self.model, self.trainable, losses, exchanges)
        found: list[Finding | None] = [None] * self.mesh.world_size
        dist.all_gather_object(found, own)
        return what_was_first(found)

    # State

    def state(self, own_values: Tensors) -> EngineState:
        """All that training goes on from, whole on every rank. Every rank must call it."""
        state = self._state
        return EngineState(
            masters=self._joined(own_values),
            exp_avg=self._joined(state.moments(MOMENTS[0])),
            exp_avg_sq=self._joined(state.moments(MOMENTS[1])),
            fixed=self.fixed_values(),
            counters=self.counters(),
        )

    def counters(self) -> dict[str, Any]:
        """Of a state, what is no tensor: JSON."""
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "schedule": self._schedule.state_dict() if self._schedule else None,
            **self._state.counters(),
        }

    def load_state(self, state: EngineState) -> None:
        """Go on from `state`, bit for bit on the topology it was taken on. Every rank gives the
        same whole state."""
        for name, parameter in self._fixed.items():
            share = share_of(state.fixed[name], parameter, self.mesh.tensor_parallel)
            self._state.set_parameter(parameter, share)
        moments = {MOMENTS[0]: self._own(state.exp_avg), MOMENTS[1]: self._own(state.exp_avg_sq)}
        self.load(Held(self._own(state.masters), moments), state.counters)

    def load(self, source: Source, saved: dict[str, Any]) -> None:
        """The same from a state that need not be all there at once, and its counters."""
        self._gathered = None
        counters = dict(saved)
        if self._schedule and counters["schedule"]:
            counters["rates"] = self._rates_after(counters["schedule"])
        self._state.load(source, counters)
        self.steps = self._engine.global_steps = saved["steps"]
        self.skipped = self._engine.skipped_steps = saved["skipped"]
        self._skipped_in_a_row = saved["skipped_in_a_row"]

    def _rates_after(self, position: dict[str, Any]) -> list[dict[str, Any]]:
        """What the schedule of this run, taken up at `position`, has set for the next step. It need
        not be what was saved there: a run may have been given more steps since. Before its first
        step a schedule has set what it starts with."""
        self._schedule.load_state_dict(position)
        if (last := self._schedule.last_batch_iteration) >= 0:
            self._schedule.step(last)
        return self._state.counters()["rates"]

    def own_values(self) -> Tensors:
        """Name to float32 value of every trainable parameter of this rank: a tensor-parallel shard,
        but whole under any ZeRO stage. Every rank must call it. They are gathered once between two
        steps, whoever asks for them; nobody may change them."""
        if self._gathered is None:
            self._gathered = self._state.masters()
        return dict(self._gathered)

    def whole_adapter(self) -> Tensors:
        """Name to float32 value of every trainable parameter, the shards joined, on the CPU; from
        the masters where the optimizer keeps them. Every rank must call it."""
        return self._joined(self.own_values())

    def fixed_values(self) -> Tensors:
        """Name to float32 value of every tensor that the adapter keeps and does not train, the
        shards joined, on the CPU. Every rank must call it."""
        found = {}
        for name, parameter in self._fixed.items():
            with gathered(parameter):
                value = joined(parameter.detach(), parameter, self.mesh.tensor_parallel)
                found[name] = value.to("cpu", torch.float32, copy=True)
        return found

    def replica_problems(self, own_values: Tensors) -> list[str]:
        """One line for each trainable tensor that differs between ranks that should hold the same;
        see `replicas.differing`. Every rank must call it."""
        held = self.trainable if self.zero_stage < 3 else {}
        return differing(own_values, self.trainable, held, self.mesh)

    def optimizer_state_bytes(self) -> int:
        """Bytes that the optimizer holds on this rank: float32 masters and moments."""
        return sum(t.numel() * t.element_size() for t in self._state.state_tensors())

    def optimizer_tensors(self) -> list[torch.Tensor]:
        """All that the optimizer holds on this rank: see `OptimizerState.state_tensors`."""
        return list(self._state.state_tensors())

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """torch's own, which DeepSpeed's steps."""
        return self._state.inner

    def step_bytes(self) -> int:
        """Bytes that this rank takes in a step beside its passes: for each gradient 4, and 4 for
        the buffer it is summed in, of the whole adapter, or under ZeRO-3, which cuts gradients up
        as they come, of its own share; and in the first one two float32 moments of what it
        optimizes, which stay."""
        own = self.optimized_elements
        gradients = own if self.zero_stage == 3 else whole_elements(self.trainable.values())
        return 8 * gradients + (0 if self._state.has_moments else 8 * own)

    def close(self) -> None:
        """Let go of the model and of what DeepSpeed keeps of it, for another to be built."""
        self._engine.destroy()
        del self._engine, self._optimizer, self._schedule, self._state, self.model, self.trainable
        del self.parts, self._window

    def _joined(self, values: Tensors) -> Tensors:
        tp, trained = self.mesh.tensor_parallel, self.trainable
        return {n: joined(v.to(self.device), trained[n], tp).cpu() for n, v in values.items()}

    def _own(self, values: Tensors) -> Tensors:
        """This rank's shards of whole tensors, on its device."""
        return {
            name: share_of(values[name], parameter, self.mesh.tensor_parallel).to(self.device)
            for name, parameter in self.trainable.items()
        }

    # Sums

    def _total(self, *numbers: int) -> list[int]:
        return [int(n) for n in self._reduced(torch.tensor(numbers, dtype=torch.int64))]

    def _reduced(self, value: torch.Tensor) -> torch.Tensor:
        if self.mesh.data_parallel_size > 1:
            value = value.to(self.device)
            dist.all_reduce(value, group=self.mesh.data_parallel_group)
        return value
