"""What no trace can show: memory that CUDA, its libraries and the allocator take beside tensors.

One table, so that a measurement on another card or version has one place to go to
(`tests/gpu/plan_on_gpu.py` shows by how much a plan is off). docs/plan.md has the table that they
were taken from; `nccl` alone is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Constants:
    """Bytes, unless said."""

    cublas_workspace: int = 40 * MIB
    """Of the libraries of matrix products, taken from torch's allocator, so that it counts as
    allocated: 32 MiB on Hopper (8 MiB and a little before), and as much again for the products that
    add in place."""
    context: int = 2497 * MIB
    """What the driver shows as used beyond what the allocator has reserved: on an H100 (torch 2.11,
    driver 580) the same within 3 MiB in 14 runs of 1B to 8B. 685 MiB of it are there after a first
    product; the rest comes with NCCL's communicator, which a process group on CUDA makes at once,
    of a single rank too, and with the kernels of a step."""
    nccl: int = 350 * MIB
    """Buffers of NCCL for each further group of more than one rank. Not measured."""
    fragments: float = 0.15
    """Of the memory that activations may take, what `--checkpointing auto` leaves free of them, a
    share. With segments that grow in place (`llama/launch/program.py`) 0.6 to 0.7 GiB were seen
    reserved and not allocated beside 4 to 8 GiB of activations. A trial does not show it:
    gradients, buckets and moments, which come later and stay, come to lie between the blocks of a
    step."""
    slack: float = 0.03
    """A share of what is alive at the peak: what the allocator holds in pieces that fit nothing.
    0.009 to 0.041 were seen."""


CONSTANTS = Constants()
