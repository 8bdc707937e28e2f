"""What no trace can show: memory that CUDA, its libraries and the allocator take beside tensors.

One table, so that a measurement on another card or version has one place to go to
(`tests/gpu/plan_on_gpu.py` shows by how much a plan is off). All but `fragments` are estimates, and
none has been fitted to a measurement yet.
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
    context: int = 520 * MIB
    """CUDA's context with the kernels of torch, cuBLAS and cuDNN loaded."""
    nccl: int = 350 * MIB
    """Buffers and kernels of NCCL for each process group of more than one rank."""
    fragments: float = 0.3
    """Of the memory that activations may take, what `--checkpointing auto` leaves free of them, a
    share. The allocator cuts its segments into blocks of every size that a step asks for;
    gradients, buckets and moments come to lie between them and stay, so that pieces are left into
    which nothing fits. Under a cap of 24 GiB, 12.6 of them weights that never move, 3.0 GiB were
    seen reserved and not allocated when a step ran out of memory, and 3.6 at another time: 0.27 and
    0.32 of the rest. A trial does not show it: it starts with whole segments and leaves nothing
    between them."""
    slack: float = 0.03
    """A share of what is alive at the peak: what the allocator holds in pieces that fit nothing."""


CONSTANTS = Constants()
