"""What a block keeps under each level of `Kept`, and what a step takes beside that: one short trace
for each level. `--checkpointing auto` fills memory by these numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from llama.fused.keeping import PLAIN, Sizes, choose
from llama.model.kept import Kept
from llama.planning.constants import CONSTANTS
from llama.planning.job import Job, of_few_blocks
from llama.planning.trace import trace

BLOCKS = 3
"""Of the traced model: the first block differs from the others where its input needs no gradient,
and the last may in what comes after it; one is between them."""


@lru_cache(maxsize=16)
def sizes_of(job: Job) -> Sizes:
    """The sizes of a micro-batch of `job`, whatever it says of checkpointing."""
    levels = list(PLAIN)
    if job.fused and job.device == "cuda":
        levels = [level for level in Kept if level > Kept.HOST or job.blocks_are_fused]
    short = replace(job, config=job.config.with_layers(BLOCKS), accumulation=1)
    traced = {level: trace(replace(short, checkpointing=(level,) * BLOCKS)) for level in levels}
    return Sizes(
        {level: found.kept[1] for level, found in traced.items()},
        {level: max(found.loss_beside, found.backward_beside) for level, found in traced.items()},
    )


def kept_within(job: Job, available: int) -> tuple[Kept, ...]:
    """What `--checkpointing auto` has each block of `job` keep on a device with `available` bytes
    for this process. On a CUDA device a run may still keep less, where a trial fails."""
    before, trained = _between_steps(replace(job, checkpointing="block", accumulation=1))
    # As `Engine.step_bytes`: a gradient of what trains, and the buffer it is summed in.
    room = available - before - 2 * trained * 4
    if job.device == "cuda":
        room = for_activations(room - CONSTANTS.context)
    return tuple(choose(sizes_of(job), job.config.n_layers, room))


def _between_steps(job: Job) -> tuple[int, int]:
    """Bytes that lie there, and how many numbers train."""
    few = of_few_blocks(job)
    if few is None:
        found = trace(job)
        return found.before, found.trained_elements
    jobs, whole = few
    short, longer = map(trace, jobs)
    before = whole(short.before, longer.before)
    return before, whole(short.trained_elements, longer.trained_elements)


def for_activations(room: int) -> int:
    """Of `room` bytes that a CUDA device has left for a step, those that activations may be planned
    to take: the libraries want their workspace, and the allocator leaves pieces."""
    return int((room - CONSTANTS.cublas_workspace) * (1.0 - CONSTANTS.fragments))
