"""What a launcher said in the environment, checked before it is believed: with no RANK every
process would train alone and all would write the same files, with a wrong one each would wait for
the others for half an hour."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from llama.errors import raise_if
from llama.launch.ranks import read

_LAUNCHER = "start all processes by one launcher (deepspeed, torchrun, srun or mpirun)"
_NVIDIA = Path("/proc/driver/nvidia/gpus")


def check_launch() -> None:
    """Raise `UserError` with every problem of this process's environment and device."""
    visible = torch.cuda.device_count() if torch.cuda.is_available() else None
    present = len(list(_NVIDIA.iterdir())) if _NVIDIA.is_dir() and torch.version.cuda else 0
    raise_if(launch_problems(os.environ, visible, present))


def launch_problems(environment: Mapping[str, str], visible: int | None, present: int) -> list[str]:
    """What is wrong with `environment`, where torch can use `visible` CUDA devices (None: it runs
    on the CPU) and the host has `present` of them that torch was built for."""
    told = read(environment)
    if told.problems:
        return told.problems
    environment = {**environment, **told.changes}
    problems: list[str] = []
    world_size = _integer(environment, "WORLD_SIZE", 1, None, problems)
    rank = _integer(environment, "RANK", 0, world_size, problems)
    local = _integer(environment, "LOCAL_RANK", 0, None, problems)
    several = (world_size or 1) > 1  # one alone may have port 0, any that is free: none is used
    _integer(environment, "MASTER_PORT", int(several), 65536, problems)
    given = {"WORLD_SIZE": world_size, "RANK": rank}
    if not problems and None in given.values() and (rank is not None or (world_size or 1) > 1):
        (name,) = (name for name, value in given.items() if value is None)
        (other,) = given.keys() - {name}
        problems.append(f"{name}: not set, though {other} is {environment[other]}: {_LAUNCHER}")
    elif (world_size or 1) > 1:
        problems += [
            f"{name}: not set, though WORLD_SIZE is {world_size}: {_LAUNCHER}"
            for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
            if not environment.get(name)
        ]
        address = environment.get("MASTER_ADDR", "")
        if not address.isascii() or re.search(r"\s", address):
            problems.append(
                f"MASTER_ADDR: expected a host's name or address, found {address!a}: {_LAUNCHER}"
            )
    return problems + _device_problems(environment, local or 0, visible, present)


def _integer(
    environment: Mapping[str, str], name: str, least: int, end: int | None, problems: list[str]
) -> int | None:
    """The variable's value, if it is set and an integer of at least `least` and below `end`."""
    text = environment.get(name)
    if text is None:
        return None
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    if value is not None and value >= least and (end is None or value < end):
        return value
    below = "" if end is None else f" and below {'WORLD_SIZE, ' if name == 'RANK' else ''}{end}"
    problems.append(
        f"{name}: expected an integer of at least {least}{below}, found {text!r}: {_LAUNCHER}"
    )
    return None


def _device_problems(
    environment: Mapping[str, str], local: int, visible: int | None, present: int
) -> list[str]:
    named = environment.get("CUDA_VISIBLE_DEVICES")
    said = "" if named is None else f" (CUDA_VISIBLE_DEVICES={named})"
    if visible is not None and local >= visible:
        devices = f"{visible} CUDA device{'s' if visible > 1 else ''}"
        bound = "SLURM_PROCID" in environment
        todo = ", or let every task see all: srun --gpus-per-node, --gpu-bind=none" if bound else ""
        return [
            f"LOCAL_RANK: {local}, but this process sees {devices}{said}: start at most {visible} "
            f"on this host (deepspeed --num_gpus {visible}){todo}"
        ]
    if visible is None and present and named and named != "-1":
        return [
            f"CUDA_VISIBLE_DEVICES: {named} is no device that torch can use, of {present} on this "
            "host: name others, or leave it empty to run on the CPU"
        ]
    return []
