"""How long steps take, what memory they hold, and how much arithmetic they are."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator

import torch

from llama.metrics.hardware import gpu_of_device
from llama.model.config import LINEARS, ModelConfig
from llama.parallel.peers import outside_bytes


class Stopwatch:
    """Seconds of work between `lap`s; what is done under `paused` does not count."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._last += time.perf_counter() - started


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was held so far: on CUDA by tensors, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) + outside_bytes()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step_flops(
    config: ModelConfig, tokens: int, supervised: int, weight_gradients: bool = False
) -> float:
    """Floating-point operations that a step needs, recomputation not counted: 2 for each weight and
    token forward, 2 backward, and 2 for the weight's own gradient where it has one. The
    embedding is a look-up, the output matrix meets supervised tokens only, and the adapters and
    attention within short documents are left out as small: MFU errs on the low side."""
    block = sum(rows * columns for rows, columns in map(config.linear_shape, LINEARS))
    weights = config.n_layers * block * tokens + config.vocab_size * config.dim * supervised
    return (6.0 if weight_gradients else 4.0) * weights


def mfu(flops_per_second: float, devices: int, device: torch.device) -> float | None:
    """Share of the devices' peak that `flops_per_second` is; None where the peak is not known."""
    if device.type != "cuda":
        return None
    gpu = gpu_of_device(torch.cuda.get_device_name(device))
    return None if gpu is None else flops_per_second / (gpu.half * devices)
