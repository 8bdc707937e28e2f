"""What a launcher says, and the devices that there are."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

from tests.bad_inputs.setting import Case, Setting, launched


def variables(**changes: str | None) -> Callable[[Setting], None]:
    """What a launcher would say to the first of two ranks, but for `changes`."""

    def spoil(setting: Setting) -> None:
        said = launched(0, 2) | changes
        setting.environment |= {name: value for name, value in said.items() if value is not None}

    return spoil


def cuda(devices: int, present: int, named: str, local: str) -> Callable[[Setting], None]:
    """A host with GPUs, of which `named` are visible, seen by rank `local` of 4."""

    def spoil(setting: Setting) -> None:
        setting.environment |= launched(int(local), 4) | {"CUDA_VISIBLE_DEVICES": named}
        gpus = setting.path("gpus")
        for number in range(present):
            (gpus / str(number)).mkdir(parents=True)
        setting.patches += [
            mock.patch("torch.cuda.is_available", lambda: devices > 0),
            mock.patch("torch.cuda.device_count", lambda: devices),
            mock.patch("torch.version.cuda", "13.0"),
            mock.patch("llama.launch.launchers._NVIDIA", gpus),
        ]

    return spoil


CASES = [
    Case("no RANK", variables(RANK=None), ("RANK: not set",)),
    Case("no WORLD_SIZE", variables(WORLD_SIZE=None), ("WORLD_SIZE: not set",)),
    Case("no LOCAL_RANK", variables(LOCAL_RANK=None), ("LOCAL_RANK: not set",)),
    Case("RANK as large as WORLD_SIZE", variables(RANK="2"), ("below WORLD_SIZE, 2, found '2'",)),
    Case("RANK -1", variables(RANK="-1"), ("RANK: expected an integer of at least 0",)),
    Case("RANK `first`", variables(RANK="first"), ("RANK: expected an integer",)),
    Case("WORLD_SIZE 0", variables(WORLD_SIZE="0"), ("WORLD_SIZE: expected an integer of at",)),
    Case("WORLD_SIZE `two`", variables(WORLD_SIZE="two"), ("WORLD_SIZE: expected",)),
    Case(
        "nothing of the first rank",
        variables(MASTER_ADDR=None, MASTER_PORT=None),
        ("MASTER_ADDR: not set", "MASTER_PORT: not set"),
    ),
    Case("MASTER_PORT 70000", variables(MASTER_PORT="70000"), ("MASTER_PORT: expected",)),
    Case("more ranks than devices", cuda(2, 4, "0,1", "2"), ("this process sees 2 CUDA devices",)),
    Case("no such device", cuda(0, 4, "9", "0"), ("9 is no device that torch can use, of 4",)),
]
