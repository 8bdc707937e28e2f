"""Names of GPUs: those of the command line, and those that CUDA gives."""

from __future__ import annotations

import pytest

from llama.errors import UserError
from llama.metrics.hardware import GIB, GPUS, gpu_named, gpu_of_device


@pytest.mark.parametrize(
    ("device", "memory", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", 39 * GIB, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 79 * GIB, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 79 * GIB, "h100-80gb"),
        ("NVIDIA H200", 139 * GIB, "h200"),
        ("NVIDIA L40S", 44 * GIB, "l40s"),
        ("NVIDIA L4", 22 * GIB, "l4"),
        ("NVIDIA A10G", 22 * GIB, "a10g-24gb"),
        ("NVIDIA GeForce RTX 4090", 23 * GIB, "rtx-4090"),
        ("Tesla T4", 15 * GIB, "t4"),
        ("Tesla V100-SXM2-32GB", 31 * GIB, "v100-32gb"),
    ],
)
def test_a_device_is_found_by_the_name_that_cuda_gives(device: str, memory: int, name: str) -> None:
    assert gpu_of_device(device, memory) is GPUS[name]


@pytest.mark.parametrize("device", ["NVIDIA L400", "Quadro T400", "Intel Xeon", ""])
def test_others_are_not(device: str) -> None:
    assert gpu_of_device(device) is None


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="found 'H100'; did you mean h100-80gb"):  # and not h200
        gpu_named("H100")
    with pytest.raises(UserError, match="found 'a100'; did you mean a100-"):
        gpu_named("a100")


def test_the_rates_are_of_one_order() -> None:
    """A slip of a factor of a thousand would show."""
    for gpu in GPUS.values():
        assert 10 * GIB < gpu.memory < 300 * GIB
        assert 50e12 < gpu.half < 5000e12 and gpu.single < gpu.half
        assert 0.2e12 < gpu.bandwidth < 10e12 and gpu.link.bytes_per_second < gpu.bandwidth
