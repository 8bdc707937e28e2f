"""What DeepSpeed keeps and takes beside the model, stage by stage, as rooms of its sizes.

Each class stands for one of DeepSpeed's optimizers and is told when a gradient is there, when a
backward pass ends and when the step comes. It then takes and lets go of memory as DeepSpeed does;
what that is was read in 0.19.8: `runtime/engine.py`, `runtime/zero/stage_1_and_2.py`, `stage3.py`,
and in torch's `optim/adam.py`. E is what is trained, in elements; P this rank's share of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from llama.parallel.shares import optimized_elements
from llama.planning.job import Job
from llama.planning.storages import LiveStorages

ALL_REDUCE_AT_ONCE = 500_000_000
"""Elements of a bucket of ZeRO-0's all-reduce, `MEMORY_OPT_ALLREDUCE_SIZE` of `engine.py`."""

SUB_GROUP = 1_000_000_000
"""Elements that ZeRO-3 updates at a time, `sub_group_size`."""


class Optimizer:
    """Without ZeRO: moments of every trained element, gradients where autograd puts them; at the
    step's end they are all-reduced in a flat copy."""

    def __init__(self, job: Job, trained: Sequence[nn.Parameter], storages: LiveStorages) -> None:
        self.job, self.trained, self.storages = job, list(trained), storages
        groups = [{"params": self.trained}]
        self.held = optimized_elements(groups, job.zero.stage, job.data_parallel)
        """P, padding included."""
        self.elements = sum(p.numel() for p in self.trained)
        """E"""
        self.rooms: dict[str, torch.Tensor] = {}
        """What is held from step to step or from call to call, by a name of its own."""

    def room(self, elements: int, dtype: torch.dtype, kind: str) -> torch.Tensor:
        """Memory, counted as `kind`, for as long as it is held."""
        with self.storages.counting(kind):
            return torch.empty(elements, dtype=dtype)

    def start(self) -> None:
        """Take what is there before any step but the first."""
        self.rooms["moments"] = self.room(2 * self.held, torch.float32, "optimizer")

    def gradient(self, parameter: nn.Parameter) -> None:
        """The gradient of `parameter` has been added up in its `.grad`."""
        self.storages.relabel(parameter.grad, "gradients")

    def backward_ended(self, boundary: bool) -> None:
        """Of one micro-batch; `boundary`: of the last one of the step."""
        if not boundary:
            return
        flat = 0
        for parameter in self.trained:
            flat += parameter.numel()
            if flat > ALL_REDUCE_AT_ONCE:
                self.room(flat, torch.float32, "buckets")
                flat = 0
        self.room(flat, torch.float32, "buckets")
        for parameter in self.trained:  # the norm, in float64: the gradient and its squares
            self.room(2 * parameter.numel(), torch.float64, "step")

    def step(self) -> None:
        """The optimizer's step; gradients are let go of after it."""
        if self.job.device == "cuda":
            self.adam(self.elements)
        else:
            self.adam(max(p.numel() for p in self.trained))
        self.let_go()

    def adam(self, elements: int) -> None:
        """torch's Adam on `elements` at a time: the root of the second moments; where it goes
        tensor by tensor, as on the CPU, that divided by its bias correction too."""
        self.room(elements * (1 if self.job.device == "cuda" else 2), torch.float32, "step")

    def let_go(self) -> None:
        """No gradient is held any more."""
        for parameter in self.trained:
            parameter.grad = None


class Stage1(Optimizer):
    """ZeRO-1: flat trained weights, float32 masters and moments of the share. Gradients gather in
    `.grad`; at the step's end they are copied into a bucket, summed at their owner, and kept flat
    by it."""

    reduces_each_backward = False

    def start(self) -> None:
        """Parameters become views of one flat tensor, filled up for equal shares."""
        padded = self.held * self.job.data_parallel
        flat = self.room(padded, self.job.dtype, "trained")
        offset = 0
        for parameter in self.trained:
            parameter.data = flat[offset : offset + parameter.numel()].view(parameter.shape)
            offset += parameter.numel()
        if not self.job.zero.offload_optimizer:
            self.rooms["masters"] = self.room(3 * self.held, torch.float32, "optimizer")
        else:
            largest = max(p.numel() for p in self.trained)
            self.rooms["one gradient"] = self.room(largest, self.job.dtype, "buckets")
        self.waiting = 0
        self.first = True

    @property
    def bucket(self) -> int:
        return self.job.zero.reduce_bucket

    def gradient(self, parameter: nn.Parameter) -> None:
        self.storages.relabel(parameter.grad, "gradients")
        if "bucket" not in self.rooms:
            buckets = 2 if self.job.zero.overlap else 1
            self.rooms["bucket"] = self.room(buckets * self.bucket, self.job.dtype, "buckets")
        if self.reduces_each_backward:
            self.put_in_bucket(parameter)

    def put_in_bucket(self, parameter: nn.Parameter) -> None:
        """Its gradient is from then on a view of the bucket, unless it is larger than that."""
        if self.waiting + parameter.numel() > self.bucket:
            self.reduce()
        if parameter.numel() <= self.bucket and parameter.grad is not None:
            parameter.grad = None
        self.waiting += parameter.numel()

    def reduce(self) -> None:
        """Sum what waits in the bucket at its owners: in pieces, one for each rank, which gloo
        takes joined and gives a share of from every rank (`engine/owners.py`); what is this rank's
        is then copied out."""
        if not self.waiting:
            return
        dtype, ranks = self.job.dtype, self.job.data_parallel
        pieces = self.room(self.waiting, dtype, "buckets")
        if self.job.device == "cuda":
            summed = self.room(self.waiting // ranks, dtype, "buckets")
        else:
            summed = self.room(self.waiting, dtype, "buckets")
            summed = summed, self.room(self.waiting, dtype, "buckets")
        del pieces, summed
        if "own gradients" not in self.rooms and not self.job.zero.offload_optimizer:
            self.rooms["own gradients"] = self.room(self.held, dtype, "gradients")
        self.waiting = 0
        if self.reduces_each_backward:
            for parameter in self.trained:
                parameter.grad = None

    def backward_ended(self, boundary: bool) -> None:
        if not (boundary or self.reduces_each_backward):
            return
        if not self.reduces_each_backward:
            for parameter in self.trained:
                self.put_in_bucket(parameter)
        self.reduce()
        self.let_go()
        self.rooms.pop("bucket", None)
        own = self.rooms.pop("own gradients", None)
        if own is not None:  # later micro-batches' are added to the first one's
            self.rooms.setdefault("summed", own)

    def step(self) -> None:
        """The share's gradients are joined, widened, and Adam run on them."""
        if self.job.zero.offload_optimizer:
            return
        joined = self.room(self.held, self.job.dtype, "step")
        wide = joined
        if self.job.dtype != torch.float32:
            wide = self.room(self.held, torch.float32, "step")
        del joined
        self.rooms.pop("summed", None)
        self.adam(self.held)
        del wide


class Stage2(Stage1):
    """ZeRO-2: the same, in every micro-batch and as soon as gradients are there."""

    reduces_each_backward = True


class Stage3(Optimizer):
    """ZeRO-3: a share of every parameter, trained or not; a bucket and the share's gradients lie
    there all the time. What is gathered for a moment: `gathering.py`."""

    def start(self) -> None:
        zero, dtype = self.job.zero, self.job.dtype
        self.rooms["bucket"] = self.room(zero.reduce_bucket, dtype, "buckets")
        self.waiting = 0
        if not zero.offload_optimizer:
            self.rooms["gradients"] = self.room(self.held, dtype, "gradients")
            self.rooms["masters"] = self.room(self.held, torch.float32, "optimizer")
            # Until the first step has made the moments, zeros for a whole gradient lie there.
            moments = max(2 * self.held, min(self.elements, SUB_GROUP))
            self.rooms["moments"] = self.room(moments, torch.float32, "optimizer")

    def gradient(self, parameter: nn.Parameter) -> None:
        """It is copied into the bucket."""
        if self.waiting + parameter.numel() > self.job.zero.reduce_bucket and self.waiting:
            self.reduce()
        if parameter.numel() <= self.job.zero.reduce_bucket:
            parameter.grad = None
        else:
            self.storages.relabel(parameter.grad, "gradients")
        self.waiting += parameter.numel()

    def reduce(self) -> None:
        """A reduce-scatter of what waits, in one flat copy."""
        self.room(self.waiting, self.job.dtype, "buckets")
        self.waiting = 0
        self.let_go()

    def backward_ended(self, boundary: bool) -> None:
        self.reduce()

    def step(self) -> None:
        """The share's gradients are joined, widened, and Adam run on them."""
        if self.job.zero.offload_optimizer:
            return
        joined = self.room(self.held, self.job.dtype, "step")
        wide = joined
        if self.job.dtype != torch.float32:
            wide = self.room(self.held, torch.float32, "step")
        del joined
        self.adam(self.held)
        del wide


STAGES: dict[int, type[Optimizer]] = {0: Optimizer, 1: Stage1, 2: Stage2, 3: Stage3}
