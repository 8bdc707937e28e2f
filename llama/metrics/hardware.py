"""GPUs and links by name: what they hold, how fast they are on paper, and where that is from.

A GPU's rates are the makers', dense (without sparsity) and with sums in float32. What is left of
them in a step is measured, and a matter of `llama/planning/time.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llama.errors import UserError
from llama.files.inputs import nearest

GIB = 2**30
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Link:
    """What carries bytes in one direction."""

    name: str
    bytes_per_second: float
    """That a collective reaches: from one GPU within a node, from a whole node between nodes."""
    hop: float
    """Seconds that a message takes at least."""
    reaches_memory: bool = False
    """Whether a GPU reads another's memory over it, with no program of the other's."""


@dataclass(frozen=True)
class GPU:
    """One kind of GPU."""

    part: str
    """Of the name that CUDA gives the device."""
    memory: int
    """Bytes that CUDA reports in all, before its context. Where a part of that name comes in more
    sizes, the nearest is meant."""
    half: float
    """FLOP/s of products in bf16, or in fp16 where it has no bf16."""
    single: float
    """FLOP/s of products in float32, which torch takes without TF32."""
    bandwidth: float
    """Bytes a second of its memory."""
    link: Link
    """To the other GPUs of its node."""
    capability: tuple[int, int]
    """CUDA's compute capability."""
    source: str

    @property
    def bf16(self) -> bool:
        return self.capability >= (8, 0)

    def rate(self, precision: str) -> float:
        """FLOP/s of products in `fp16`, `bf16` or `fp32`."""
        return self.single if precision == "fp32" else self.half


_NVLINK_SHARE = 286.5 / 450
"""NCCL's all-reduce of 128 MiB over two H100s reached 286.5 GB/s of NVLink 4's 450 in one direction
(`tests/gpu/link_rate.py`, docs/scaling.md). Assumed of the other generations too."""
_PCIE_SHARE = 0.6
"""Of a x16 slot's rate, assumed: GPUs without NVLink exchange through host memory."""

NVLINK = Link("NVLink 4 (one node)", 286.5e9, 3e-6, True)
"""Measured; 450 GB/s on paper."""
_NVLINK_2 = Link("NVLink 2", _NVLINK_SHARE * 150e9, 3e-6, True)
_NVLINK_3 = Link("NVLink 3", _NVLINK_SHARE * 300e9, 3e-6, True)
_NVLINK_5 = Link("NVLink 5", _NVLINK_SHARE * 900e9, 3e-6, True)
_PCIE_4 = Link("PCIe 4.0 x16", _PCIE_SHARE * 32e9, 10e-6)
_PCIE_3 = Link("PCIe 3.0 x16", _PCIE_SHARE * 16e9, 10e-6)

GPUS: Mapping[str, GPU] = MappingProxyType(
    {
        "a100-40gb": GPU(
            *("A100", int(39.39 * GIB), 312e12, 19.5e12, 1.555e12, _NVLINK_3),
            capability=(8, 0),
            source="NVIDIA A100 data sheet (SXM4 40 GB)",
        ),
        "a100-80gb": GPU(
            *("A100", int(79.15 * GIB), 312e12, 19.5e12, 2.039e12, _NVLINK_3),
            capability=(8, 0),
            source="NVIDIA A100 data sheet (SXM4 80 GB)",
        ),
        "h100-80gb": GPU(
            *("H100", 85_017_493_504, 989.4e12, 67e12, 3.35e12, NVLINK),
            capability=(9, 0),
            source="NVIDIA H100 data sheet (SXM5); memory measured",
        ),
        "h200": GPU(
            *("H200", 150_109_880_320, 989.4e12, 67e12, 4.8e12, NVLINK),
            capability=(9, 0),
            source="NVIDIA H200 data sheet (SXM5); memory measured",
        ),
        "b200": GPU(
            *("B200", int(178.3 * GIB), 2250e12, 75e12, 7.7e12, _NVLINK_5),
            capability=(10, 0),
            source="NVIDIA HGX B200 data sheet, an eighth of it",
        ),
        "l40s": GPU(
            *("L40S", int(44.4 * GIB), 362e12, 91.6e12, 0.864e12, _PCIE_4),
            capability=(8, 9),
            source="NVIDIA L40S data sheet",
        ),
        "a10g-24gb": GPU(
            *("A10G", int(22.1 * GIB), 70e12, 31.5e12, 0.6e12, _PCIE_4),
            capability=(8, 6),
            source="AWS, instances of type G5",
        ),
        "l4": GPU(
            *("L4", int(22.0 * GIB), 121e12, 30.3e12, 0.3e12, _PCIE_4),
            capability=(8, 9),
            source="NVIDIA L4 data sheet",
        ),
        "rtx-4090": GPU(
            *("RTX 4090", int(23.5 * GIB), 165.2e12, 82.6e12, 1.008e12, _PCIE_4),
            capability=(8, 9),
            source="NVIDIA Ada GPU architecture, appendix A",
        ),
        "rtx-3090": GPU(
            *("RTX 3090", int(23.5 * GIB), 71e12, 35.6e12, 0.936e12, _PCIE_4),
            capability=(8, 6),
            source="NVIDIA Ampere GA102 GPU architecture, appendix A",
        ),
        "v100-32gb": GPU(
            *("V100", int(31.7 * GIB), 125e12, 15.7e12, 0.9e12, _NVLINK_2),
            capability=(7, 0),
            source="NVIDIA V100 data sheet (SXM2)",
        ),
        "t4": GPU(
            *("T4", int(14.6 * GIB), 65e12, 8.1e12, 0.32e12, _PCIE_3),
            capability=(7, 5),
            source="NVIDIA T4 data sheet",
        ),
    }
)
"""By the name that the command line takes. Memory that is not measured is the least of what out-of-
memory messages of torch report for such a card: "total capacity of 39.39 GiB"."""

_OF_LINE_RATE = 0.8
"""That a collective is taken to reach between nodes."""
NETWORKS: Mapping[str, Link] = MappingProxyType(
    {
        "ndr-400": Link("8 x NDR 400 Gb/s", _OF_LINE_RATE * GPUS_PER_NODE * 400e9 / 8, 5e-6),
        "hdr-200": Link("8 x HDR 200 Gb/s", _OF_LINE_RATE * GPUS_PER_NODE * 200e9 / 8, 5e-6),
        "100gbe": Link("1 x 100 GbE", _OF_LINE_RATE * 100e9 / 8, 30e-6),
        "25gbe": Link("1 x 25 GbE", _OF_LINE_RATE * 25e9 / 8, 30e-6),
    }
)
"""Between nodes, a node's whole edge, by the name that the command line takes."""
HOST = Link("PCIe to host memory", 25e9, 10e-6)
"""Pinned memory over a x16 slot of PCIe 4.0, as commonly measured; offloaded weights cross it."""


def gpu_named(name: str) -> GPU:
    """The GPU that `--gpu` names. Raises `UserError` with the nearest name."""
    if name not in GPUS:
        raise UserError(
            f"--gpu: expected one of {', '.join(GPUS)}, found {name!r}{nearest(name, tuple(GPUS))}"
        )
    return GPUS[name]


def gpu_of_device(name: str, memory: int | None = None) -> GPU | None:
    """The GPU whose device CUDA calls `name`, by the memory that it reports where there are two
    of that name; None where it is not in the table."""
    words = name.replace("-", " ").split()
    found = [gpu for gpu in GPUS.values() if f" {gpu.part} " in f" {' '.join(words)} "]
    return min(found, key=lambda gpu: abs(gpu.memory - (memory or gpu.memory)), default=None)
