"""DeepSpeed behind one door: start the processes, wrap the model, take an optimizer step.

Nothing else in this package imports deepspeed. What it would compile at first use (a shared-memory
all-reduce, its own Adam) is kept off: a compiler is not asked of anyone.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

os.environ.setdefault("DS_BUILD_OPS", "0")
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # said, or DeepSpeed warns that it found none

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.ops import __compatible_ops__
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from llama.data.feed import model_inputs
from llama.data.types import Batch
from llama.deepspeed_json import Resolved
from llama.lora.attach import trainable_parameters
from llama.parallel.mesh import DeepSpeedTopology, Mesh

_LOGGER = logging.getLogger("DeepSpeed")


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


def launched_world_size() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_processes() -> torch.device:
    """Join the other processes of the run, or stand alone, and give this one's device."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ.update(alone)
        os.environ["MASTER_PORT"] = "0"  # the store of a single process picks a free port
    _log_to_stderr()
    _keep_freed_memory()
    __compatible_ops__["deepspeed_shm_comm"] = False
    device = _own_device()
    if not dist.is_initialized():
        # Named for the device, not as DeepSpeed would: its CPU default is a package of Intel's.
        device_id = device if device.type == "cuda" else None
        dist.init_process_group("cpu:gloo,cuda:nccl" if device_id else "gloo", device_id=device_id)
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    return device


def stop_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def fp16_supported() -> bool:
    """Whether DeepSpeed trains in fp16 on this device."""
    return bool(_accelerator().is_fp16_supported())


def bf16_supported() -> bool:
    return bool(_accelerator().is_bf16_supported())


def _accelerator() -> Any:
    return get_accelerator()


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one. By default every large tensor on the CPU
    is mapped anew and each of its pages faults again, which costs a tenth of a step and more."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    mallopt(m_arena_max, 1)
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


def _log_to_stderr() -> None:
    """DeepSpeed logs its own start to standard output; keep its warnings, on standard error."""
    _LOGGER.setLevel(logging.WARNING)
    for handler in _LOGGER.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


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
        _LOGGER.setLevel(logging.ERROR)  # it asks its own schedule for a rate too early, and warns
        self._engine, self._optimizer, _, _ = initialize(
            model=model,
            model_parameters=list(self.trainable.values()),
            config=resolved.engine,
            mpu=DeepSpeedTopology(mesh),
            dist_init_required=False,
        )
        _LOGGER.setLevel(logging.WARNING)
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
