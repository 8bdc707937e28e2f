"""The files that say what a run was: `run.json` at its start, `summary.json` at its end."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import torch

from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.launch import packages
from llama.parallel.mesh import Mesh
from llama.train.start.inputs import Inputs
from llama.train.start.schedule import Schedule


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "packages": {package: metadata.version(package) for package in packages.EVERY},
        "device": name or platform.machine(),
        "device_type": device.type,
        "host_cores": os.cpu_count(),
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file as one: a reader sees the old one, or the new one whole."""
    text = json_text(document, indent=2, ensure_ascii=False, default=str) + "\n"
    # Half a surrogate pair, as a file's name may hold, is written as JSON writes it.
    write_file(path, text.encode(errors="backslashreplace"))


def run_record(
    inputs: Inputs, schedule: Schedule, mesh: Mesh, device: torch.device
) -> dict[str, Any]:
    """What `run.json` holds: everything resolved."""
    data = [inputs.training, inputs.held_out]
    return {
        "options": dataclasses.asdict(inputs.options),
        "deepspeed": schedule.resolved.engine,
        "precision": schedule.resolved.precision,
        "notes": schedule.resolved.notes,
        "steps": schedule.total_steps,
        "topology": mesh.as_json(),
        **trainable(inputs),
        "model": dataclasses.asdict(inputs.source.config),
        "model_fingerprint": inputs.source.reader.fingerprint(),
        "data": [{"files": list(map(str, d.files)), "sha256": d.sha256} for d in data if d],
        **environment(device),
    }


def resumed_before(path: Path) -> list[dict[str, Any]]:
    """What an earlier `run.json` of this folder says of each time that the run was taken up."""
    try:
        resumed = json.loads(path.read_text(encoding="utf-8"))["resumed"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return resumed if isinstance(resumed, list) else []


def trainable(inputs: Inputs) -> dict[str, Any]:
    """Count, share and bytes of what trains, over the whole model."""
    method = inputs.method
    count = sum(map(prod, method.shapes().values()))
    total = inputs.source.config.parameter_count() + method.added()
    return {
        "trainable_parameters": count,
        "total_parameters": total,
        "trainable_share": count / total,
        "optimizer_state_bytes_expected": 12 * count,
    }
