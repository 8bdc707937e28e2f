"""One step of the real model, traced with fake tensors: no weights, no device, no arithmetic.

The model, its adapters, the fused block and the objective are the program's own. Only what is
DeepSpeed's is described anew (`zero.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llama.adapters.attach import adapters, attach
from llama.adapters.sequence import run_on_share
from llama.base.kinds import KINDS
from llama.data.batches import own_part
from llama.data.types import IGNORE, Batch
from llama.fused.install import install
from llama.kernels.compiled import Plan, planned
from llama.kernels.paths import as_on_cuda
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.rope import Rotation
from llama.model.transformer import RunBlock, Supervision, Transformer, TransformerBlock
from llama.objectives.kinds import SFT
from llama.parallel.mesh import SINGLE, TensorParallel
from llama.parallel.sequence import SequenceParallel
from llama.planning.cuda import OPERATORS, workspace
from llama.planning.gathering import Gathering
from llama.planning.job import Job
from llama.planning.sharded import SharedBase
from llama.planning.storages import LiveStorages
from llama.planning.zero import STAGES, Optimizer
from llama.weights.load import Placement, load_weights
from llama.weights.random_init import RandomReader

CPU = torch.device("cpu")
CUDA_BLOCK = 512
"""torch's allocator gives out whole multiples of so many bytes, and counts them as allocated."""


@dataclass
class Traced:
    """What a step held, in bytes."""

    peak: int = 0
    at_peak: Mapping[str, int] = field(default_factory=dict)
    """What of it was of which kind; they add up to `peak`."""
    before: int = 0
    """What lay there before the step."""
    trained_elements: int = 0
    kept: list[int] = field(default_factory=list)
    """What each block's forward pass of the last micro-batch left behind."""
    loss_beside: int = 0
    """The most that lived in the loss beyond `before` and what the blocks had kept."""
    backward_beside: int = 0
    """The same of the backward pass."""


def trace(job: Job) -> Traced:
    """One step of `job`, neither the run's first nor its last."""
    tp = Shard(0, job.tensor_parallel) if job.tensor_parallel > 1 else SINGLE
    return _Step(job, tp).traced


class _Step:
    """The step, taken when this is made."""

    def __init__(self, job: Job, tp: TensorParallel) -> None:
        on_cuda = job.device == "cuda"
        self.job = job
        self.traced = Traced()
        self.shared: SharedBase | None = None
        self.fake = FakeTensorMode()
        self.storages = LiveStorages(
            workspace=workspace if on_cuda else None, whole=CUDA_BLOCK if on_cuda else 1
        )
        with ExitStack() as stack:
            for each in _ways(job, self.storages):
                stack.enter_context(each)
            self.model = build(job, tp, self.fake)
            self._take()

    def _take(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = STAGES[self.job.zero.stage](self.job, trained, self.storages)
        with self._followed():
            self._tell(trained, optimizer)
        gathering = self._gathering(optimizer)
        self.storages.forget_peak()
        elements = optimizer.elements
        self.traced = Traced(before=self.storages.total, trained_elements=elements)
        for micro in range(min(self.job.accumulation, 2), 0, -1):
            if gathering:
                gathering.begin()
            self._micro_batch()
            with self._followed():
                if gathering:
                    gathering.backward_ended()
                optimizer.backward_ended(boundary=micro == 1)
        with self._followed():
            if gathering:
                gathering.step_ended()
            self._look()
            optimizer.step()
        self._look()

    def _look(self) -> int:
        """The most that has lived since the last look; the most of all is kept."""
        most = self.storages.peak
        if most > self.traced.peak:
            self.traced.peak, self.traced.at_peak = most, dict(self.storages.at_peak)
        self.storages.forget_peak()
        return most

    def _gathering(self, optimizer: Optimizer) -> Gathering | None:
        """Under ZeRO-3 on several ranks a first pass finds the order of the modules."""
        if not self._is_cut_up:
            return None
        gathering = Gathering(
            self.job, self.model, lambda n: optimizer.room(n, self.job.dtype, "buckets")
        )
        self._micro_batch()
        with self._followed():
            optimizer.backward_ended(boundary=False)
            gathering.end_of_recording()
        return gathering

    @property
    def _is_cut_up(self) -> bool:
        return self.job.zero.stage == 3 and self.job.data_parallel > 1

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """Within, tensors have no values, and their storages are counted."""
        with self.fake, self.storages:
            yield

    def _tell(self, trained: list[nn.Parameter], optimizer: Optimizer) -> None:
        """Have the storages known for what they are, as they come."""
        model, storages = self.model, self.storages
        frozen = [p for p in model.parameters() if not p.requires_grad]
        if self._is_cut_up:  # what the model computes with is gathered, in rooms of their own
            for kind, parameters in (("weights", frozen), ("trained", trained)):
                held = sum(-(-p.numel() // self.job.data_parallel) for p in parameters)
                optimizer.rooms[kind] = optimizer.room(held, self.job.dtype, kind)
        elif self.job.shares_base:
            shared = self.shared = SharedBase(model, self.job.base_sharers, optimizer.room)
            storages.ignore(list(shared.cut))
            storages.add([p for p in frozen if p not in shared.cut], "weights")
            storages.add(trained, "trained")
        else:
            storages.add(frozen, "weights")
            storages.add(trained, "trained")
        optimizer.start()
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(optimizer.gradient)
        model.run_block = partial(self._run_block, model.run_block)
        model.output.register_forward_pre_hook(lambda *_: self._begin_loss())

    def _micro_batch(self) -> None:
        """Forward and backward of one, as `Engine.step` has them."""
        storages, traced = self.storages, self.traced
        storages.kind = "working"
        traced.kept.clear()
        before = storages.total

        def forward(**inputs: Any) -> torch.Tensor:
            with self._followed():
                if self.shared:
                    self.shared.begin()
                return self.model(**_faked(inputs, self.fake, storages))

        batch = own_part(batch_of(self.job), sharing_of(self.job))
        loss = SFT.loss(forward, batch, CPU)
        storages.kind = "working"
        held = before + sum(traced.kept)
        traced.loss_beside = self._look() - held
        with self._followed():
            loss.backward()
        traced.backward_beside = self._look() - held

    def _run_block(
        self,
        inner: RunBlock,
        block: TransformerBlock,
        x_TD: torch.Tensor,
        rotation: Rotation,
        documents: Documents,
        cache: KVCache | None,
    ) -> torch.Tensor:
        """What is left of a block's forward pass when it ends is kept for its backward pass."""
        self.storages.relabel_all("working", "kept")
        before = self.storages.live["kept"]
        if self.shared:
            self.shared.begin_block(block.layer)
        out = inner(block, x_TD, rotation, documents, cache)
        if self.shared:
            self.shared.end_block(block.layer, out)
        self.storages.relabel_all("working", "kept")
        self.traced.kept.append(self.storages.live["kept"] - before)
        return out

    def _begin_loss(self) -> None:
        self.storages.relabel_all("working", "kept")
        self.storages.kind = "loss"
        self._look()


def _ways(job: Job, storages: LiveStorages) -> Iterator[Any]:
    """What makes the trace take the paths of the job's device."""

    def outputs_only(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A compiled kernel's intermediates lie in registers."""
        with storages.paused():
            out = function(*args)
        storages.add(out)
        return out

    def as_written(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return function(*args)

    yield planned(Plan(job.fused, outputs_only if job.fused else as_written))
    if job.device == "cuda":
        yield as_on_cuda(OPERATORS)


class _NoValues(Placement):
    """Of weights that nobody reads."""

    reads = False


def build(job: Job, tp: TensorParallel, fake: FakeTensorMode) -> Transformer:
    """The model as `build_engine` makes it, of tensors without values."""
    with torch.device("meta"):
        model = Transformer(job.config, tp)
    model.requires_grad_(job.lora is None)
    if job.lora is not None:
        attach(model, job.lora)
        for _, adapter in adapters(model):
            adapter.to(job.dtype)
    reader = RandomReader(job.config)
    fake.allow_non_fake_inputs = True  # those on the meta device, to be replaced
    with fake:
        kind = KINDS[job.base]
        load_weights(model, reader, job.dtype, CPU, tp.rank, tp.size, _NoValues(), kind)
        for _, adapter in adapters(model):
            adapter.materialise(CPU)
    fake.allow_non_fake_inputs = False
    run_on_share(model, sharing_of(job))
    if job.fused and job.device == "cuda" and job.zero.stage < 3:
        install(model)
    model.frequencies = fake.from_tensor(model.frequencies)
    model.keep(job.kept)
    return model.train()


def batch_of(job: Job) -> Batch:
    """A micro-batch of the job's documents, with a target where the job has one: of each document
    the last, until there are as many as it says."""
    lengths = job.lengths
    boundaries = tuple(accumulate(lengths, initial=0))
    targets_T = torch.full((boundaries[-1],), IGNORE)
    left = boundaries[-1] if job.supervised is None else job.supervised
    for end, length in zip(boundaries[1:], lengths, strict=True):
        taken = min(left, length - 1)
        targets_T[end - 1 - taken : end - 1] = 0
        left -= taken
    return Batch(
        tokens=torch.zeros_like(targets_T),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        targets=targets_T,
        boundaries=boundaries,
        supervised=int((targets_T != IGNORE).sum()),
        stream=0,
    )


def _faked(inputs: dict[str, Any], fake: FakeTensorMode, storages: LiveStorages) -> dict[str, Any]:
    """The arguments of the model without their values, counted as kept: the graph holds them."""
    labels = inputs["labels"]
    tensors = [inputs["tokens_T"], inputs["positions_T"], labels.index_N, labels.labels_N]
    tokens, positions, index, targets = map(fake.from_tensor, tensors)
    storages.add([tokens, positions, index, targets], "kept")
    return inputs | {
        "tokens_T": tokens,
        "positions_T": positions,
        "labels": Supervision(index, targets),
    }


class Sharing(SequenceParallel):
    """One of several ranks that share tokens, the others not being there: what they would send is
    as large as what this one does."""

    def _sent(self, x: torch.Tensor, given: list[int], taken: list[int]) -> torch.Tensor:
        _, found = x.contiguous(), x.new_empty(sum(taken), x.shape[1])
        return found


def sharing_of(job: Job) -> SequenceParallel:
    """The last rank's, which has the most."""
    return Sharing(job.sequence_parallel - 1, job.sequence_parallel)


class Shard(TensorParallel):
    """One of several tensor-parallel ranks, the others not being there: what it would exchange
    stays as it is. fairscale's collectives work in place, so that this takes the same memory."""

    def _exchanges(self) -> bool:
        return False
