"""DeepSpeed's optimizer state as whole tensors by name, out of any ZeRO stage and back into any.

What is DeepSpeed's own knowledge here (where a stage keeps masters and moments) was read in
`utils/tensor_fragment.py`, `runtime/zero/stage_1_and_2.py` and `stage3.py` of 0.19.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn

from llama.engine.state import MOMENTS, Tensors

SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""All that changes in a dynamic loss scaler."""
RATES = ("lr", "betas")
"""All that a schedule changes in a group of the optimizer's."""


class Source(Protocol):
    """Where a state comes from, by name, as this rank's tensor-parallel shards have it."""

    def master(self, name: str) -> torch.Tensor:
        """The whole parameter, float32."""
        ...

    def moment(self, name: str, key: str, start: int, end: int) -> torch.Tensor:
        """Of the parameter laid out flat, `[start, end)`, float32."""
        ...


@dataclass(frozen=True)
class Held:
    """A `Source` of tensors that are all there."""

    masters: Tensors
    moments: Mapping[str, Tensors]

    def master(self, name: str) -> torch.Tensor:
        return self.masters[name]

    def moment(self, name: str, key: str, start: int, end: int) -> torch.Tensor:
        return self.moments[key][name].flatten()[start:end]


class OptimizerState:
    """Reads and writes the state of `trainable` in `optimizer`, DeepSpeed's at `stage`. Every
    tensor that goes in or out is a whole parameter of this rank: a tensor-parallel shard."""

    def __init__(self, trainable: Mapping[str, nn.Parameter], optimizer: Any, stage: int) -> None:
        self.trainable = trainable
        self.optimizer = optimizer
        self.stage = stage
        self.inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)

    # Out. Every rank of the data-parallel group must call these: the values are gathered, and are
    # the caller's own: a checkpoint is written while training goes on.

    def masters(self) -> Tensors:
        """Float32 values, from the optimizer's copies where it keeps them."""
        found = {}
        for name, parameter in self.trainable.items():
            full = safe_get_full_fp32_param(parameter)
            found[name] = _copy(parameter if full is None else full)
        return found

    def moments(self, key: str) -> Tensors:
        """`exp_avg` or `exp_avg_sq`; zeros before the first step."""
        if not self.has_moments:
            return {name: torch.zeros(_shape(p)) for name, p in self.trainable.items()}
        found = {}
        self._link()
        for name, parameter in self.trainable.items():
            full = safe_get_full_optimizer_state(parameter, key) if self.stage else None
            value = self.inner.state[parameter][key] if full is None else full
            found[name] = _copy(value)
        return found

    def counters(self) -> dict[str, Any]:
        """Adam's count of steps, what the schedule has set, and the loss scaler."""
        states = [state for state in self.inner.state.values() if "step" in state]
        scaler = getattr(self.optimizer, "loss_scaler", None)
        return {
            "optimizer_step": int(states[0]["step"]) if states else 0,
            "rates": [{key: group[key] for key in RATES} for group in self.inner.param_groups],
            "loss_scaler": {key: getattr(scaler, key) for key in SCALER if hasattr(scaler, key)},
        }

    # Out, a piece at a time and nothing gathered.

    def own_range(self, parameter: Any) -> tuple[int, int]:
        """Of `parameter` laid out flat, the elements `[start, end)` whose master and moments this
        rank keeps; an empty range where it keeps none."""
        if self.stage == 0:
            return 0, parameter.numel()
        if self.stage == 3:
            length, size = parameter.ds_tensor.numel(), parameter.ds_numel
            start = min(length * parameter.ds_zero_partition_rank, size)
            return start, min(start + length, size)
        if parameter._hp_mapping is None:
            return 0, 0
        address = parameter._hp_mapping.lp_fragment_address
        return address.start, address.start + address.numel

    def own(self, parameter: Any, key: str | None = None) -> torch.Tensor:
        """The master (no key) or a moment over `own_range`, flat, float32. It may be the very
        memory that the optimizer steps."""
        start, end = self.own_range(parameter)
        if start == end or (key is not None and not self.has_moments):
            return torch.zeros(end - start)
        if self.stage == 0:
            value = parameter.detach() if key is None else self.inner.state[parameter][key]
            return value.float().flatten()
        if self.stage == 3:
            value = (
                safe_get_local_fp32_param(parameter)
                if key is None
                else safe_get_local_optimizer_state(parameter, key)
            )
            return value.detach().flatten()[: end - start]
        return parameter._hp_mapping.get_hp_fragment(key).detach()

    # In

    def load(self, source: Source, counters: Any) -> None:
        """Put back what was given out, at this or at another stage. Every rank must call it; no
        more than one parameter is there at a time beyond what `source` holds."""
        if counters["optimizer_step"]:
            self._make_moments(counters["optimizer_step"])
            for key in MOMENTS:
                for name, parameter in self.trainable.items():
                    start, end = self.own_range(parameter)
                    self._set(parameter, source.moment(name, key, start, end), key)
        for name, parameter in self.trainable.items():
            master = source.master(name)
            start, end = self.own_range(parameter)
            self._set(parameter, master.flatten()[start:end], None)
            self.set_parameter(parameter, master)
        for group, rates in zip(self.inner.param_groups, counters["rates"], strict=True):
            group.update(rates, betas=tuple(rates["betas"]))
        scaler = getattr(self.optimizer, "loss_scaler", None)
        for key, value in counters["loss_scaler"].items():
            if hasattr(scaler, key):
                setattr(scaler, key, value)

    @property
    def has_moments(self) -> bool:
        """Whether Adam's moments are there: torch makes them in its first step."""
        return any("exp_avg" in state for state in self.inner.state.values())

    def _make_moments(self, step: int) -> None:
        """torch makes them in its first step; a resumed run has none yet. Where Adam's count lives
        (on the host, or beside the tensor for the fused kernel) is torch's rule."""
        for tensor, group in self._stepped():
            beside = group.get("fused") or group.get("capturable")
            device = tensor.device if beside else "cpu"
            self.inner.state[tensor] = {
                "step": torch.tensor(float(step), dtype=torch.float32, device=device),
                **{key: torch.zeros_like(tensor) for key in MOMENTS},
            }
        self._link()

    def _link(self) -> None:
        """Have each parameter know its moments, where ZeRO-1 and 2 keep them. DeepSpeed sees to it
        once, after the first group's first step: the moments of another group are not there yet."""
        if self.stage in (1, 2):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _stepped(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        """What torch's optimizer steps, and its group's settings. At stage 3 DeepSpeed puts a flat
        tensor into its group for the length of a step, and takes it out again."""
        if self.stage == 3:
            groups = self.optimizer.sub_group_to_group_id
            for index, flat in enumerate(self.optimizer.fp32_partitioned_groups_flat):
                yield flat, self.inner.param_groups[groups[index]]
        else:
            for group in self.inner.param_groups:
                yield from ((tensor, group) for tensor in group["params"])

    @torch.no_grad()
    def _set(self, parameter: Any, flat: torch.Tensor, key: str | None) -> None:
        """A master (no key) or a moment, over `own_range`."""
        if flat.numel() == 0:
            return
        if self.stage == 0:
            if key is not None:
                self.inner.state[parameter][key].copy_(flat.view(parameter.shape))
        elif self.stage == 3:
            missing = parameter.ds_tensor.numel() - flat.numel()  # the last share is padded
            piece = torch.nn.functional.pad(flat, (0, missing)).to(parameter.ds_tensor.device)
            if key is None:
                safe_set_local_fp32_param(parameter, piece)
            else:
                safe_set_local_optimizer_state(parameter, piece, key)
        else:
            parameter._hp_mapping.get_hp_fragment(key).copy_(flat)

    @torch.no_grad()
    def set_parameter(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """What the model computes with; without this the next forward would use the old values."""
        if self.stage < 3:
            parameter.copy_(value)
            return
        with GatheredParameters(parameter, modifier_rank=0):
            parameter.copy_(value)

    def state_tensors(self) -> Iterator[torch.Tensor]:
        """All that the optimizer holds on this rank: masters that are not the parameters
        themselves, and moments."""
        parameters = {id(p) for p in self.trainable.values()}
        if self.stage == 3:
            yield from self.optimizer.fp32_partitioned_groups_flat
        else:
            for group in self.inner.param_groups:
                yield from (p for p in group["params"] if id(p) not in parameters)
        for state in self.inner.state.values():
            yield from (v for v in state.values() if isinstance(v, torch.Tensor) and v.dim() > 0)


def _copy(value: torch.Tensor) -> torch.Tensor:
    """Float32, on the CPU. Never the same memory, as `.float().cpu()` may be."""
    return value.detach().to("cpu", torch.float32, copy=True)


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Of the whole parameter, which ZeRO-3 keeps aside."""
    return getattr(parameter, "ds_shape", parameter.shape)
