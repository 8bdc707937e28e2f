"""The files that say what a run was: `run.json` at its start, `summary.json` at its end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import sys
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch

from llama.data.prepare import Prepared
from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.files.run_folder import RECORD, REPORT, SUMMARY
from llama.launch import packages
from llama.launch.parent import launcher_processes
from llama.parallel.mesh import Mesh
from llama.train.start.fits import Verdict
from llama.train.start.inputs import Inputs
from llama.train.start.resume import Resumer
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
    return {
        "command": command(),
        "working_directory": os.getcwd(),
        "options": dataclasses.asdict(inputs.options),
        "deepspeed": schedule.resolved.engine,
        "precision": schedule.resolved.precision,
        "notes": schedule.resolved.notes,
        "steps": schedule.total_steps,
        "topology": mesh.as_json(),
        **trainable(inputs),
        "model": dataclasses.asdict(inputs.source.config),
        "model_fingerprint": inputs.source.reader.fingerprint(),
        "data": [
            _data_record(option, data)
            for option, data in (("data", inputs.training), ("eval_data", inputs.held_out))
            if data is not None
        ],
        **environment(device),
    }


def write_record(
    inputs: Inputs,
    schedule: Schedule,
    mesh: Mesh,
    device: torch.device,
    resumer: Resumer,
    verdict: Verdict | None,
) -> dict[str, Any]:
    """Write `run.json`, and take away what says how an earlier run in this folder ended. Gives what
    the run is made of."""
    start = resumer.start
    for name in (SUMMARY, REPORT):
        (start.folder / name).unlink(missing_ok=True)
    resumed = resumed_before(start.folder / RECORD)
    if start.source is not None:
        resumed.append({"step": start.step, "from": str(start.source), **resumer.topology})
    record = run_record(inputs, schedule, mesh, device)
    more = {"plan": verdict and verdict.record, "sha256": resumer.hashes(), "resumed": resumed}
    write_json(start.folder / RECORD, record | more)
    return record


def command() -> list[str]:
    """The words by which the run was started: the launcher's, where one can be seen."""
    with contextlib.suppress(psutil.Error, OSError):
        if launchers := launcher_processes():
            return launchers[-1].cmdline()
    return sys.orig_argv


def _data_record(option: str, data: Prepared) -> dict[str, Any]:
    report = data.report
    return {
        "option": option,
        "files": list(map(str, data.files)),
        "sha256": data.sha256,
        "rows": report.rows,
        "examples": report.examples,
        "tokens": report.tokens,
        "supervised_tokens": report.supervised_tokens,
        "report": report.text(),
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
