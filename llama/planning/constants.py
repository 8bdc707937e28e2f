"""What no trace can show: memory that CUDA, its libraries and the allocator take beside tensors.

One table, so that a measurement on another card or version has one place to go to
(`tests/gpu/plan_on_gpu.py` measures each row again).
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
    slack: float = 0.03
    """Of what is alive at the peak: what the allocator holds in pieces that fit nothing."""


CONSTANTS = Constants()
