"""A model with adapters under DeepSpeed: one optimizer step at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from llama.data.feed import model_inputs
from llama.data.types import Batch
from llama.deepspeed_json import Resolved
from llama.lora.attach import trainable_parameters
from llama.parallel.mesh import DeepSpeedTopology, Mesh
from llama.train.engine.gradients import check_all_at_once
from llama.train.engine.processes import LOGGER


@dataclass(frozen=True)
class Step:
    """What one optimizer step did, summed over all ranks where that has a meaning."""

    loss_sum: float
    supervised: int
    tokens: int
    learning_rate: float
    grad_norm: float | None
    loss_scale: float | None
    applied: bool
    """False where an overflow made DeepSpeed skip the update."""

    @property
    def loss(self) -> float:
        """Mean over the supervised tokens of the step."""
        return self.loss_sum / max(self.supervised, 1)


class Engine:
    """A model with adapters under DeepSpeed. Only what requires a gradient is optimized."""

    def __init__(
        self, model: nn.Module, resolved: Resolved, mesh: Mesh, device: torch.device, seed: int
    ) -> None:
        self.mesh = mesh
        self.device = device
        self.seed = seed
        self.steps = 0
        self.trainable = trainable_parameters(model)
        initialize: Any = deepspeed.initialize  # its annotations are narrower than what it takes
        LOGGER.setLevel(logging.ERROR)  # it asks its own schedule for a rate too early, and warns
        self._engine, self._optimizer, _, _ = initialize(
            model=model,
            model_parameters=list(self.trainable.values()),
            config=resolved.engine,
            mpu=DeepSpeedTopology(mesh),
            dist_init_required=False,
        )
        LOGGER.setLevel(logging.WARNING)
        check_all_at_once(self._optimizer)
        self.model: nn.Module = self._engine.module

    def step(self, window: Sequence[Batch]) -> Step:
        """Forward and backward of this rank's micro-batches, then one optimizer step.

        The loss is the sum over all supervised tokens of the window, on every rank, over their
        number: DeepSpeed's division by the accumulation steps is left out and its mean over
        data-parallel ranks undone, so the split into micro-batches and ranks changes nothing."""
        supervised, tokens = self._total(
            sum(b.supervised for b in window),
            sum(len(b.tokens) for b in window if b.supervised),  # a filler's are nobody's
        )
        weight = self.mesh.data_parallel_size / max(supervised, 1)
        loss_sum = torch.zeros((), device=self.device)
        if not self.model.training:
            self._engine.train()
        for index, batch in enumerate(window):
            last = index == len(window) - 1
            self._engine.set_gradient_accumulation_boundary(last)
            torch.manual_seed(_stream_seed(self.seed, self.steps, batch.stream))
            loss = self._engine(**model_inputs(batch, self.device))
            loss_sum += loss.detach()
            self._engine.backward(loss * weight, scale_wrt_gas=False)
            self._engine.step()
        self.steps += 1
        return Step(
            loss_sum=self._sum_over_data_parallel(loss_sum),
            supervised=supervised,
            tokens=tokens,
            learning_rate=float(self._engine.get_lr()[0]),
            grad_norm=_number(self._engine.get_global_grad_norm()),
            loss_scale=_number(self._optimizer.cur_scale) if self.is_fp16 else None,
            applied=bool(self._engine.was_step_applied()),
        )

    @property
    def is_fp16(self) -> bool:
        return bool(self._engine.fp16_enabled())

    def adapter_values(self) -> dict[str, torch.Tensor]:
        """Name to this rank's value of every trainable parameter, from the float32 master copies
        where the optimizer keeps them. Every rank must call it."""
        values = {}
        for name, parameter in self.trainable.items():
            full = safe_get_full_fp32_param(parameter)
            values[name] = (parameter if full is None else full).detach().float().cpu()
        return values

    def optimizer_state_bytes(self) -> int:
        """Bytes that the optimizer holds on this rank: float32 masters and moments."""
        inner = getattr(self._optimizer, "optimizer", self._optimizer)
        masters = [p for group in inner.param_groups for p in group["params"]]
        held = {id(p): p for p in self.trainable.values()}
        tensors = [p for p in masters if id(p) not in held]
        for state in inner.state.values():
            tensors += [v for v in state.values() if isinstance(v, torch.Tensor) and v.dim() > 0]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _total(self, *numbers: int) -> list[int]:
        return [int(n) for n in self._reduced(torch.tensor(numbers, dtype=torch.int64))]

    def _sum_over_data_parallel(self, value: torch.Tensor) -> float:
        return float(self._reduced(value.double()))

    def _reduced(self, value: torch.Tensor) -> torch.Tensor:
        if self.mesh.data_parallel_size > 1:
            value = value.to(self.device)
            dist.all_reduce(value, group=self.mesh.data_parallel_group)
        return value


def _stream_seed(seed: int, step: int, stream: int) -> int:
    """The dropout seed of micro-batch `stream` (counted over all ranks) of a step: a function of
    what is computed, not of where, so that any split draws the same masks."""
    digest = hashlib.sha256(f"dropout:{seed}:{step}:{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]
