"""Whether the memory that there is holds the run, asked before any weights load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from llama.assembly.memory import free_bytes
from llama.errors import UserError
from llama.kernels.compiled import is_wanted
from llama.metrics.hardware import GIB, gpu_of_device
from llama.model.kept import Checkpointing, Kept
from llama.parallel.agreement import on_main
from llama.parallel.mesh import Mesh
from llama.planning.constants import CONSTANTS
from llama.planning.fit import estimated, largest_micro_batch, largest_seq_len
from llama.planning.job import Job, settings_of
from llama.planning.levels import kept_within
from llama.planning.memory import CONTEXT, TRAINED, WEIGHTS, Memory, memory
from llama.planning.rows import largest_batch, mean_batch
from llama.planning.time import Place, step_time
from llama.planning.work import weights_bytes as shard_bytes
from llama.train.start.inputs import Inputs
from llama.train.start.schedule import Schedule

CPU_LENIENCE = 1.25
"""On a CPU a run is refused where it needs more than so many times what is free: other programs
give memory back when it is asked for, and the system may page."""
FAR = 0.8
"""Of the room there is, what an estimate must lie below to be believed."""
SMALL = GIB
"""Bytes below which no run is refused on a CPU."""


@dataclass(frozen=True)
class Verdict:
    """What was planned, for the log and for run.json."""

    line: str
    record: dict[str, Any]


def require_fit(inputs: Inputs, plan: Schedule, mesh: Mesh, device: torch.device) -> Verdict | None:
    """Raise `UserError` on every rank where a step needs more than the rank with the least memory
    has left, saying what would fit. None where `--plan false` asks for no plan. Every rank must
    call it."""
    if not inputs.options.plan:
        return None
    least = -mesh.highest(-free_bytes(device))[0]
    return on_main(mesh, lambda: _judge(job_of(inputs, plan, mesh, device), inputs, device, least))


def job_of(inputs: Inputs, plan: Schedule, mesh: Mesh, device: torch.device) -> Job:
    """What a rank is to do, by the largest micro-batch that the data can give."""
    options = inputs.options
    on_cuda = device.type == "cuda"
    documents, supervised = largest_batch(inputs.training.packed, plan.resolved.micro_batch)
    if not on_cuda:  # there each document is attended by itself, which is long in tracing
        longest = -(-sum(documents) // plan.resolved.micro_batch)
        documents = (longest,) * plan.resolved.micro_batch
    return Job(
        inputs.source.config,
        inputs.method.adapters(options.lora),
        base=options.base,
        seq_len=options.seq_len,
        documents=documents,
        supervised=supervised,
        checkpointing="block" if options.checkpointing == "auto" else options.checkpointing,
        fused=is_wanted(options.compile, on_cuda, plan.resolved.precision),
        tensor_parallel=mesh.tensor_parallel.size,
        sequence_parallel=mesh.sequence_parallel.size,
        data_parallel=mesh.data_parallel_size,
        base_sharers=mesh.base_sharers,
        device="cuda" if on_cuda else "cpu",
        **settings_of(plan.resolved),
    )


def needed_bytes(job: Job, found: Memory) -> int:
    """What the process will take by the plan `found` beyond what it has taken by now: CUDA's
    context is there. On the CPU a tensor is read in float32 beside the weights, which can be more
    than a step takes."""
    if job.device == "cuda":
        return found.used_bytes - found.bytes_of(CONTEXT)
    weights = sum(term.bytes for term in found.terms if term.name in (WEIGHTS, TRAINED))
    largest = 4 * job.config.vocab_size * job.config.dim // job.tensor_parallel
    return max(found.used_bytes, weights + largest)


def weights_bytes(job: Job) -> int:
    """Of the weights that the rank holds between steps."""
    if job.zero.offload_param and job.device == "cuda":
        return 0
    weights = shard_bytes(job)
    return weights // (job.data_parallel if job.zero.stage == 3 else job.base_sharers)


def _judge(job: Job, inputs: Inputs, device: torch.device, available: int) -> Verdict:
    room = available
    if device.type == "cpu":
        room = max(SMALL, int(CPU_LENIENCE * available))
    weights = weights_bytes(job)
    if weights > room:  # no need to trace a step, which takes a while of a model that large
        raise UserError(_refusal(weights, "its weights alone", job, inputs, available, room))
    found = planned(job, room)
    on_cuda, auto = job.device == "cuda", inputs.options.checkpointing == "auto"
    if on_cuda and auto and (needed_bytes(job, found) <= room or job.blocks_are_fused):
        with_context = available + CONSTANTS.context  # which is there by now
        job = replace(job, checkpointing=kept_within(job, with_context))
        found = planned(job, room)
    needed = needed_bytes(job, found)
    if needed > room:
        largest = max(found.terms, key=lambda term: term.bytes)
        most = f"{_gib(largest.bytes)} of it {largest.name}"
        raise UserError(_refusal(needed, most, job, inputs, available, room))
    return Verdict(*_told(job, found, inputs, device, available))


def planned(job: Job, room: int) -> Memory:
    """The plan of `job`: an estimate, which is there sooner, where it is far from all the room that
    there is, else the whole."""
    found = estimated(job)
    return found if needed_bytes(job, found) < FAR * room else memory(job)


def _told(
    job: Job, needed: Memory, inputs: Inputs, device: torch.device, available: int
) -> tuple[str, dict[str, Any]]:
    of = "free" if device.type == "cuda" else "free for this rank on this machine"
    line = f"{_gib(needed_bytes(job, needed))} of {_gib(available)} GiB {of}"
    largest = max(needed.terms, key=lambda term: term.bytes)
    line += f"; most of it {largest.name}, {_gib(largest.bytes)}"
    seconds = None
    if device.type == "cuda":
        gpu = gpu_of_device(torch.cuda.get_device_name(device))
        if gpu is not None:
            documents, labels = mean_batch(inputs.training.packed, job.micro_batch)
            mean = replace(job, documents=documents, supervised=labels)
            seconds = step_time(mean, Place(gpu)).total
            line += f"; about {seconds:.2f} s a step"
    record = {
        "terms": {term.name: term.bytes for term in needed.terms},
        "beside": {term.name: term.bytes for term in needed.beside},
        "peak_bytes": needed.peak_bytes,
        "used_bytes": needed.used_bytes,
        "available_bytes": available,
        "seconds_per_step": seconds,
    }
    return line, record


def _refusal(needed: int, most: str, job: Job, inputs: Inputs, available: int, room: int) -> str:
    """One line: what is needed, what there is, what would fit."""
    where = "the GPU has" if job.device == "cuda" else "this machine has for each rank"
    said = f"this run needs {_gib(needed)} GiB on each rank ({most}), and {where} "
    said += f"{_gib(available)} free: "
    return said + "; ".join([*_help(job, inputs, room), "--plan false tries it all the same"])


def _help(job: Job, inputs: Inputs, room: int) -> list[str]:
    """What would make it fit, the smallest change first."""
    if weights_bytes(job) < room:
        lines = []
        if job.micro_batch > 1 and (rows := largest_micro_batch(job, room)):
            lines.append(f"a micro-batch of {min(rows, job.micro_batch - 1)} rows fits")
        if length := largest_seq_len(replace(job, micro_batch=1), room):
            lines.append(f"one row of {length:,} tokens fits (--seq_len)")
        ways: list[Checkpointing] = ["block"] if max(job.kept) > Kept.INPUT else []
        if job.blocks_are_fused and job.device == "cuda" and max(job.kept) > Kept.HOST:
            ways.append("host")
        fitting = (way for way in ways if _fits(job, way, room))
        if way := next(fitting, None):
            lines.insert(0, f"--checkpointing {way} fits")
        if lines:
            return lines
    lines = ["not even its weights fit" if job.zero.stage < 3 else "no row is short enough"]
    degrees = [d for d in (2, 4, 8) if job.config.n_kv_heads % d == 0 and d > job.tensor_parallel]
    ranks = "more GPUs" if job.device == "cuda" else "more machines"
    if 1 < job.base_sharers < job.data_parallel:
        lines.append(f"--shard_base all cuts them up over all {job.data_parallel} ranks")
    elif job.shares_base:
        lines.append(f"on {ranks} each has a smaller share")
    elif job.zero.stage < 3 and job.lora is None:
        lines.append(f"ZeRO-3 on {ranks} (--deepspeed full_zero3) cuts them up")
    elif job.zero.stage < 3:
        n = job.data_parallel
        here = f"the ranks of a host (--shard_base all: over these {n})" if n > 1 else ranks
        lines.append(f"--shard_base cuts them up over {here}")
    if degrees:
        lines.append(f"--tensor_parallel {degrees[0]} halves them")
    lines.append(
        f"llama-lora plan --model {inputs.options.model} --gpu GPU --gpus N --suggest finds a way"
    )
    return lines


def _fits(job: Job, checkpointing: Checkpointing, room: int) -> bool:
    return memory(replace(job, checkpointing=checkpointing)).used_bytes <= room


def _gib(count: float) -> str:
    return f"{count / GIB:.1f}"
