"""One combination measured: its steps timed, their memory by part, what it has learnt."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from llama.assembly.device_settings import resolve_here
from llama.assembly.engine import build_engine
from llama.assembly.memory import free_bytes
from llama.assembly.use import summed_loss
from llama.commands.ablate.grid import Case, deepspeed_of, engine_options
from llama.commands.ablate.parts import PARTS, ByPart, parts_of
from llama.commands.benchmark.command import timed
from llama.data.batches import Epochs, eval_batches, first_windows
from llama.data.packing import PackedRow
from llama.data.types import Batch
from llama.engine import Engine
from llama.methods.kinds import KINDS
from llama.metrics.hardware import gpu_of_device
from llama.model.documents import Documents
from llama.objectives.kinds import SFT
from llama.parallel.mesh import Mesh
from llama.planning.job import Job, settings_of
from llama.planning.memory import memory
from llama.planning.rows import mean_batch
from llama.planning.storages import every_tensor
from llama.planning.time import Place, step_time
from llama.settings import AblateOptions
from llama.settings.deepspeed_json import Resolved
from llama.weights.open_model import ModelSource


@dataclass(frozen=True)
class Data:
    """What every combination learns from, and what it is asked afterwards."""

    training: Sequence[PackedRow]
    held_out: Sequence[PackedRow]


@dataclass
class Result:
    """Of one combination; the figures that were not measured are None. Bytes and seconds."""

    case: Case
    planned_peak: int
    planned_parts: dict[str, int]
    planned_seconds: float | None
    peak: int | None = None
    parts: dict[str, int] = field(default_factory=dict)
    """What lived at the worst moment."""
    most: dict[str, int] = field(default_factory=dict)
    """The most that each part had, whenever that was."""
    seconds: float | None = None
    loss: float | None = None
    """Of the last step."""
    eval_loss: float | None = None
    eval_loss_before: float | None = None
    why_not: str | None = None
    """Why it was planned and not measured."""

    def as_json(self) -> dict[str, Any]:
        return {"name": self.case.name, **asdict(self)}


def measured(
    case: Case,
    options: AblateOptions,
    source: ModelSource,
    data: Data,
    mesh: Mesh,
    device: torch.device,
) -> Result:
    """Plan `case`, and take its steps where the plan fits. What does not, and what runs out of
    memory all the same, says so in the result."""
    resolved = resolve_here(deepspeed_of(case), mesh, options.steps, source.config, case.method)
    epochs = Epochs(data.training, case.micro_batch, case.accumulation, 0, 1, options.seed)
    windows = first_windows(epochs, options.steps + 1)
    jobs = {_job(case, options, source, resolved, device, b) for b in _followed(windows, device)}
    job = max(jobs, key=lambda one: memory(one).peak_bytes)
    plan = memory(job)
    result = Result(case, plan.peak_bytes, parts_of(plan), _seconds(job, data, device))
    needed, free = plan.peak_bytes, free_bytes(device)
    if needed > free:
        result.why_not = f"needs {needed / 2**30:.1f} GiB of {free / 2**30:.1f} free"
        return result
    try:
        engine = _engine(case, options, source, resolved, mesh, device)
        _measure(result, engine, windows, data, device)
    except torch.OutOfMemoryError as error:
        result.why_not = f"ran out of memory: {str(error).splitlines()[0]}"
    _forget(device)
    return result


def _followed(windows: list[list[Batch]], device: torch.device) -> list[Batch]:
    """The micro-batches of those steps whose memory is measured: on CUDA of every timed step but
    the first, on the CPU of the step that is followed."""
    steps = windows[1:-1] or windows[:1] if device.type == "cuda" else windows[-1:]
    return [batch for step in steps for batch in step]


def _job(
    case: Case,
    options: AblateOptions,
    source: ModelSource,
    resolved: Resolved,
    device: torch.device,
    batch: Batch,
) -> Job:
    return Job(
        source.config,
        KINDS[case.method].adapters(options.lora),
        seq_len=options.seq_len,
        documents=tuple(Documents(batch.boundaries).lengths),
        supervised=SFT.count(batch),
        checkpointing=case.checkpointing,
        device="cuda" if device.type == "cuda" else "cpu",
        **settings_of(resolved),
    )


def _seconds(job: Job, data: Data, device: torch.device) -> float | None:
    """What the planner expects of a step, on a GPU that it knows."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    gpu = gpu_of_device(name)
    if gpu is None:
        return None
    documents, supervised = mean_batch(data.training, job.micro_batch)
    return step_time(replace(job, documents=documents, supervised=supervised), Place(gpu)).total


def _engine(
    case: Case,
    options: AblateOptions,
    source: ModelSource,
    resolved: Resolved,
    mesh: Mesh,
    device: torch.device,
) -> tuple[Engine, ByPart, int]:
    """The engine of `case`, what will follow its memory, and the bytes that were there before."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    storages = ByPart()
    storages.ignore(every_tensor())
    engine = build_engine(source, engine_options(case, options), resolved, mesh, device)
    return engine, storages, before


def _measure(
    result: Result,
    built: tuple[Engine, ByPart, int],
    windows: list[list[Batch]],
    data: Data,
    device: torch.device,
) -> None:
    """All steps but the last are timed; in the last, which nothing is asked of besides, every
    tensor is followed."""
    engine, storages, before = built
    on_cuda = device.type == "cuda"
    try:
        result.eval_loss_before = _held_out_loss(engine, data, device)
        taken = [timed(device, lambda w=window: engine.step(w)) for window in windows[:1]]
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        taken += [timed(device, lambda w=window: engine.step(w)) for window in windows[1:-1]]
        peak = torch.cuda.max_memory_allocated(device) - before if on_cuda else None
        result.seconds = statistics.median(seconds for _, seconds in taken[1:] or taken)
        result.loss = taken[-1][0].loss
        result.eval_loss = _held_out_loss(engine, data, device)
        gc.collect()
        with storages.following(engine):
            engine.step(windows[-1])
        result.peak = storages.peak if peak is None else peak
        result.parts = {part: storages.at_peak[part] for part in PARTS}
        result.most = {part: storages.most[part] for part in PARTS}
    finally:
        engine.close()


def _held_out_loss(engine: Engine, data: Data, device: torch.device) -> float | None:
    if not data.held_out:
        return None
    total, supervised = summed_loss(engine.model, eval_batches(data.held_out, 1), device)
    return total / supervised


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
