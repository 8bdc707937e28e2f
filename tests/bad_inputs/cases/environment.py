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


def only(**said: str) -> Callable[[Setting], None]:
    """What something other than torch's launchers would say."""

    def spoil(setting: Setting) -> None:
        setting.environment |= said

    return spoil


TASK = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
"""The first of `srun -n 2`."""
PROCESS = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
"""The first of `mpirun -n 2`."""


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
    Case("MASTER_PORT 0 of two ranks", variables(MASTER_PORT="0"), ("MASTER_PORT: expected",)),
    Case(
        "a MASTER_ADDR that is no text",
        variables(MASTER_ADDR="caf\udce9"),
        ("MASTER_ADDR: expected a host's name or address, found 'caf\\udce9'",),
    ),
    Case(
        "srun, and RANK of a batch script",
        only(**TASK, RANK="0", WORLD_SIZE="1"),
        ("WORLD_SIZE: 1, but srun started 2 processes (SLURM_STEP_NUM_TASKS)",),
    ),
    Case(
        "srun, and another WORLD_SIZE",
        only(**TASK, WORLD_SIZE="8"),
        ("WORLD_SIZE: 8, but SLURM_STEP_NUM_TASKS of srun is 2",),
    ),
    Case(
        "srun of half the variables",
        only(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_STEP_ID="0"),
        ("found SLURM_PROCID 0, SLURM_STEP_NUM_TASKS not set",),
    ),
    Case(
        "mpirun over several hosts",
        only(**PROCESS, OMPI_COMM_WORLD_LOCAL_RANK="0", OMPI_COMM_WORLD_LOCAL_SIZE="1"),
        ("MASTER_ADDR: not set, and mpirun does not say where rank 0 of 2",),
    ),
    Case(
        "mpirun with no local rank",
        only(**PROCESS, OMPI_COMM_WORLD_LOCAL_SIZE="2"),
        ("OMPI_COMM_WORLD_LOCAL_RANK: not set",),
    ),
    Case("a rank of PMIx", only(PMIX_RANK="0"), ("PMIX_RANK: 0, and nothing says of how many",)),
    Case(
        "a pod of an indexed Job",
        only(JOB_COMPLETION_INDEX="0"),
        ("WORLD_SIZE: not set, though JOB_COMPLETION_INDEX is 0",),
    ),
    Case("more ranks than devices", cuda(2, 4, "0,1", "2"), ("this process sees 2 CUDA devices",)),
    Case("no such device", cuda(0, 4, "9", "0"), ("9 is no device that torch can use, of 4",)),
]
