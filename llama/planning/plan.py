"""The plan of a run, whole: memory by term, what fits, arithmetic, wire, seconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from llama.metrics.hardware import GIB
from llama.model.kept import Kept
from llama.planning.fit import largest_micro_batch, largest_seq_len
from llama.planning.job import Job, host_bytes
from llama.planning.memory import Memory, memory
from llama.planning.time import Place, StepTime, mfu, step_time, tokens_per_second
from llama.planning.wire import Traffic, traffic
from llama.planning.work import Work, work

ON_TOP = 0.05
"""Of the steps' time, what is taken for evaluation, checkpoints and the start."""


@dataclass(frozen=True)
class Plan:
    """What a run will need and take, on each of its GPUs."""

    job: Job
    place: Place
    available: int
    """Bytes of memory that a GPU has."""
    mean: Job
    """The same job with a micro-batch of the usual documents, by which its time goes; `job` has the
    largest one."""
    steps: int | None = None
    """Optimizer steps of the run; None where nothing says how many."""

    @cached_property
    def memory(self) -> Memory:
        return memory(self.job)

    @property
    def fits(self) -> bool:
        return self.memory.used_bytes <= self.available

    @cached_property
    def micro_batch(self) -> int:
        """The most rows of a micro-batch that fit, whole rows of this length."""
        return largest_micro_batch(self.job, self.available)

    @cached_property
    def seq_len(self) -> int:
        """The most tokens of a row that fit, at this micro-batch."""
        return largest_seq_len(self.job, self.available)

    @cached_property
    def work(self) -> Work:
        """Of one micro-batch."""
        return work(self.mean)

    @cached_property
    def traffic(self) -> Traffic:
        return traffic(self.mean)

    @cached_property
    def step(self) -> StepTime:
        return step_time(self.mean, self.place)

    @property
    def tokens_per_second(self) -> float:
        return tokens_per_second(self.mean, self.step)

    @property
    def mfu(self) -> float:
        return mfu(self.mean, self.place, self.step)

    @property
    def hours(self) -> float | None:
        return None if self.steps is None else self.steps * self.step.total * (1 + ON_TOP) / 3600

    def assumptions(self) -> list[str]:
        """What the figures stand on, a line each."""
        gpu, job = self.place.gpu, self.job
        lines = [
            f"memory: a trace of one step; {self.available / GIB:.2f} GiB is what CUDA reports of "
            "such a GPU, and nothing else runs on it",
            f"time: shares of the maker's rates ({gpu.source}) as measured on one H100, taken for "
            "every GPU; a host as fast as that one's, with nothing else to do",
        ]
        if job.zero.offload_param:
            lines.append("too much memory: weights in host memory are counted as the GPU's")
        if on_host := host_bytes(job):
            lines.append(
                f"the host has {on_host / GIB:.2f} GiB for the block inputs of each GPU, and the "
                "copies take no time of their own"
            )
        if job.documents is None:
            lines.append(f"rows: each full, one document of {job.seq_len} tokens, all supervised")
        if job.tensor_parallel > 1 or job.data_parallel > 1:
            lines.append(
                f"within a node {gpu.link.name} at {gpu.link.bytes_per_second / 1e9:.0f} GB/s"
            )
        if self.place.between:
            network = self.place.between
            lines.append(
                f"between nodes {network.name} at {network.bytes_per_second / 1e9:.0f} GB/s a "
                "node, 80% of its line rate"
            )
        if job.shares_base:
            lines.append(
                "a sharded base is gathered while the block before is computed, and takes what is "
                "longer: by arithmetic, measured on two GPUs"
            )
        if job.sequence_parallel > 1:
            lines.append(
                "heads are traded for tokens within a node, at its links' rate: by arithmetic, "
                "measured on two GPUs"
            )
        if self.hours is not None:
            lines.append(f"hours: {ON_TOP:.0%} on top for evaluation, checkpoints and the start")
        return lines

    def as_json(self) -> dict[str, Any]:
        """What `plan.json` and `--json` hold."""
        job, step = self.job, self.step
        return {
            "fits": self.fits,
            "available_bytes": self.available,
            "peak_bytes": self.memory.peak_bytes,
            "used_bytes": self.memory.used_bytes,
            "host_bytes": host_bytes(job),
            "terms": {term.name: term.bytes for term in self.memory.terms},
            "beside": {term.name: term.bytes for term in self.memory.beside},
            "largest_micro_batch": self.micro_batch,
            "largest_seq_len": self.seq_len,
            "flops_per_step": job.accumulation * self.work.flops,
            "sent_bytes_per_step": self.traffic.total,
            "seconds_per_step": step.total,
            "seconds": {"device": step.device, "host": step.host, "links": step.links}
            | {"fixed": step.fixed, "parts": step.parts},
            "bound_by": step.bound_by,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "steps": self.steps,
            "hours": self.hours,
            "job": _job_as_json(job),
            "assumptions": self.assumptions(),
        }


def _job_as_json(job: Job) -> dict[str, Any]:
    found = asdict(job)
    kept = [Kept(level).name.lower() for level in job.kept]
    return found | {"checkpointing": kept if len(set(kept)) > 1 else kept[0]}
