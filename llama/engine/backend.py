"""DeepSpeed as this program starts it: its variables set before its first import, its messages kept
off standard output, and what it says of the device.

DeepSpeed would compile some parts at first use (a shared-memory all-reduce, its own Adam). That is
kept off, so that nobody needs a compiler.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from typing import Any

import torch

os.environ.setdefault("DS_BUILD_OPS", "0")
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # said, or DeepSpeed warns that it found none

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.ops import __compatible_ops__
from deepspeed.runtime import compiler

from llama.engine.known import require_known
from llama.launch.processes import meet_processes

LOGGER = logging.getLogger("DeepSpeed")


def start_processes() -> torch.device:
    """Meet the other processes of the run and have DeepSpeed use the same groups; gives this
    process's device. Raises `TrainingError` where they do not meet, and `UserError` where the
    DeepSpeed that is installed is not one that this program knows."""
    require_known()
    _log_to_stderr()
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # DeepSpeed's to rename
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated")
    __compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    device = meet_processes()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    return device


def fp16_supported() -> bool:
    """Whether a run goes in fp16 on this device. On a CPU none does, though DeepSpeed takes it on
    those with AVX512-FP16: products would be made in float32 all the same, and only fp16's small
    range and its loss scale would be left of it."""
    accelerator = _accelerator()
    return accelerator.device_name() != "cpu" and bool(accelerator.is_fp16_supported())


def bf16_supported() -> bool:
    """Whether DeepSpeed trains in bf16 on this device."""
    return bool(_accelerator().is_bf16_supported())


def _accelerator() -> Any:
    return get_accelerator()


def _import_muon_uncompiled() -> None:
    """ZeRO asks of each optimizer whether it is DeepSpeed's Muon, which the settings refuse. That
    module has its functions compiled as it is imported, for which torch loads its whole compiler:
    a second of every start."""
    before: Any = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = before


def _log_to_stderr() -> None:
    """DeepSpeed logs its own start to standard output; keep its warnings, on standard error."""
    LOGGER.setLevel(logging.WARNING)
    for handler in LOGGER.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
