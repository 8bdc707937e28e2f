"""What one rank of a training step needs in memory, term by term."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from llama.parallel.sums import reads_shares, room_bytes
from llama.planning.constants import CONSTANTS
from llama.planning.job import Job
from llama.planning.trace import trace


@dataclass(frozen=True)
class Term:
    """One line of a plan."""

    name: str
    bytes: int
    why: str
    """For the user, in one line."""


@dataclass(frozen=True)
class Memory:
    """The plan of one rank."""

    terms: tuple[Term, ...]
    """What is alive at the worst moment of a step, in the order of `NAMES`: they add up to
    `peak_bytes`."""
    beside: tuple[Term, ...]
    """What the device holds beside tensors, in the order of `BESIDE`; none on the CPU."""

    @property
    def peak_bytes(self) -> int:
        """What `torch.cuda.max_memory_allocated` shows of a step; on the CPU the bytes of all live
        tensors."""
        return sum(term.bytes for term in self.terms)

    @property
    def used_bytes(self) -> int:
        """What the driver shows as used by the process."""
        return self.peak_bytes + sum(term.bytes for term in self.beside)

    def term(self, name: str) -> Term:
        """The term of that name; `KeyError` where there is none."""
        return {term.name: term for term in (*self.terms, *self.beside)}[name]

    def bytes_of(self, name: str) -> int:
        """The bytes of the term of that name."""
        return self.term(name).bytes


WEIGHTS, TRAINED, GRADIENTS, OPTIMIZER = "weights", "trained", "gradients", "optimizer"
KEPT, WORKING, LOSS, BUFFERS = "kept", "working", "loss", "communication"
STEP, LIBRARIES = "step", "libraries"
SLACK, CONTEXT, NCCL = "allocator slack", "CUDA context", "NCCL"
NAMES = {
    WEIGHTS: "frozen parameters of this rank, as held between the steps",
    TRAINED: "trained parameters in the precision of the run",
    GRADIENTS: "of the trained parameters",
    OPTIMIZER: "float32 masters where the run is in half precision, and two moments",
    KEPT: "of the forward pass, for the backward pass",
    WORKING: "what lives for a moment beyond that, in the block where it is most",
    LOSS: "logits and their gradients, a chunk at a time, and the gradient of the hidden state",
    BUFFERS: "gradients on their way between ranks, parameters gathered from them, shares of sums",
    STEP: "what the optimizer's own step takes for a moment",
    LIBRARIES: "workspaces of the libraries of matrix products",
}
"""The terms of a peak, and what each is."""
BESIDE = {
    SLACK: "memory that the allocator holds in pieces that fit nothing",
    CONTEXT: "CUDA itself and the kernels that are loaded",
    NCCL: "buffers of the communication library",
}


_OF_KIND = {"workspace": WORKING, "buckets": BUFFERS}
"""Names of the trace that are others here."""


@lru_cache(maxsize=64)
def memory(job: Job) -> Memory:
    """The plan of `job`, by tracing one step of it. `UserError` where the tensor-parallel degree
    does not divide the model."""
    found = dict.fromkeys(NAMES, 0)
    for kind, size in trace(job).at_peak.items():
        found[_OF_KIND.get(kind, kind)] += size
    if job.captured:  # added up as they come
        found[GRADIENTS] = found[TRAINED]
    elif job.added_up:
        found[GRADIENTS] += found[TRAINED]
    beside: dict[str, int] = {}
    if job.device == "cuda":
        found[LIBRARIES] = CONSTANTS.cublas_workspace
        if job.blocks_are_fused and reads_shares(job.tensor_parallel):
            found[BUFFERS] += room_bytes(job.config.dim, job.dtype.itemsize)
        degrees = (job.tensor_parallel, job.sequence_parallel, job.data_parallel)
        several = sum(degree > 1 for degree in degrees)
        several += 1 < job.base_sharers < job.data_parallel
        beside = {
            SLACK: int(CONSTANTS.slack * sum(found.values())),
            CONTEXT: CONSTANTS.context,
            NCCL: CONSTANTS.nccl * several,
        }
    return Memory(
        tuple(Term(name, size, NAMES[name]) for name, size in found.items() if size),
        tuple(Term(name, size, BESIDE[name]) for name, size in beside.items() if size),
    )
