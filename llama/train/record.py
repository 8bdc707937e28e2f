"""The files that say what a run was: `run.json` at its start, `summary.json` at its end."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama.parallel.mesh import Mesh

_PACKAGES = (
    "torch",
    "deepspeed",
    "fairscale",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "gguf",
)


def choose_output_dir(asked: Path | None, mesh: Mesh) -> Path:
    """The run's folder, the same on every rank: rank 0 decides, makes it, and tells the others.

    It is made after the first exchange, so that no rank is still checking that it is unused."""
    dist.barrier()
    chosen = [str(asked or Path("runs") / time.strftime("%Y%m%d-%H%M%S"))]
    dist.broadcast_object_list(chosen, src=0)
    folder = Path(chosen[0])
    if mesh.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    return folder


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "packages": {package: metadata.version(package) for package in _PACKAGES},
        "device": name or platform.machine(),
        "device_type": device.type,
        "host_cores": os.cpu_count(),
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file as one: a reader sees the old one, or the new one whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    os.replace(partial, path)
