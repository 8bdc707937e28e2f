"""What a block keeps under each level of `Kept`, and what a step takes beside that: one short trace
for each level. `--checkpointing auto` fills memory by these numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from llama.fused.keeping import PLAIN, Sizes
from llama.model.kept import Kept
from llama.planning.job import Job
from llama.planning.trace import trace

BLOCKS = 3
"""Of the traced model: the first block differs from the others where its input needs no gradient,
and the last may in what comes after it; one is between them."""

FRAGMENTS = 0.3
"""Of the memory that activations may take on CUDA, what is left free of them. The allocator cuts
its segments into blocks of every size that a step asks for; gradients, buckets and moments come to
lie between them and stay, so that pieces are left into which nothing fits. Under a cap of 24 GiB,
12.6 of them weights that never move, 3.0 GiB were seen reserved and not allocated when a step ran
out of memory, and 3.6 at another time: 0.27 and 0.32 of the rest. A trial does not show it: it
starts with whole segments and leaves nothing between them."""


@lru_cache(maxsize=16)
def sizes_of(job: Job) -> Sizes:
    """The sizes of a micro-batch of `job`, whatever it says of checkpointing."""
    levels = list(Kept) if job.fused and job.device == "cuda" else list(PLAIN)
    short = replace(job, config=job.config.with_layers(BLOCKS), accumulation=1)
    traced = {level: trace(replace(short, checkpointing=(level,) * BLOCKS)) for level in levels}
    return Sizes(
        {level: found.kept[1] for level, found in traced.items()},
        max(max(found.loss_beside, found.backward_beside) for found in traced.values()),
    )
