"""Which rank of how many this process is, in the words of whatever started it.

torchrun, deepspeed and accelerate set RANK, WORLD_SIZE and LOCAL_RANK. srun, mpirun and an indexed
Job of Kubernetes start the same processes and set names of their own; a program that does not look
at those is started N times, and N processes each train alone. Here they become torch's names where
they are whole; else the process is refused.

What a shell has kept is not taken for a launcher's word. In a batch script of SLURM's, and in the
shell of `srun --pty` or `salloc`, one process runs beside SLURM_NTASKS=8.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

DEFAULT_PORT = 29500
"""Torch's and DeepSpeed's own."""
_FIRST_PORT, _PORTS = 20000, 12000
"""Ports below those that the kernel gives to connections (from 32768)."""
_SPECIAL_STEP = 4294967290
"""SLURM numbers the steps that no srun of the user's started from here: interactive, batch..."""


@dataclass(frozen=True)
class Told:
    """What is to be made of the environment."""

    changes: dict[str, str] = field(default_factory=dict)
    """Variables to set."""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Names:
    """The variables in which a launcher says who a process is."""

    launcher: str
    rank: str
    size: str
    local: str
    local_size: str
    job: tuple[str, ...] = ()
    """The first that is set names the job, the same on all its processes."""


_MPI = (
    _Names(
        "mpirun",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    _Names(
        "mpirun",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Names("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Open MPI, MVAPICH, and MPICH with its kin (Intel MPI)."""


@dataclass(frozen=True)
class _Group:
    """Processes that one command started together, and which of them this is."""

    launcher: str
    rank: tuple[str, int]
    """The variable, and its value."""
    size: tuple[str, int]
    local: tuple[str, int | None]
    local_size: int | None
    first_host: str | None
    """Where rank 0 runs; None where nothing says so."""
    job: str | None


def ranks_of_host(environment: Mapping[str, str]) -> int | None:
    """How many ranks of the run this host has; None where nothing says so. deepspeed has a name of
    its own for it."""
    deepspeed = environment.get("LOCAL_SIZE") if "CROSS_SIZE" in environment else None
    return _number(environment.get("LOCAL_WORLD_SIZE") or deepspeed) or None


def adopt(environment: MutableMapping[str, str]) -> None:
    """Set torch's variables in `environment`, where another launcher's say what they are."""
    environment.update(read(environment).changes)


def read(environment: Mapping[str, str]) -> Told:
    """What to set in `environment`, and what is wrong with it. What a launcher of torch's said is
    left as it is, and nothing changes where this was done before."""
    problems: list[str] = []
    group = _group(environment, problems)
    names = ("RANK", "WORLD_SIZE")
    given = {name: environment[name] for name in names if name in environment}
    if problems:
        return Told() if len(given) == len(names) else Told(problems=problems)
    if group is None:
        return _of_index(environment, given)
    if len(given) == len(names):
        return Told(problems=_against(group, environment))
    said = {"RANK": group.rank, "WORLD_SIZE": group.size}
    problems = [
        f"{name}: {text}, but {said[name][0]} of {group.launcher} is {said[name][1]}: unset {name}"
        for name, text in given.items()
        if text != str(said[name][1])
    ]
    return Told(problems=problems) if problems else _joined(group, environment)


def _joined(group: _Group, environment: Mapping[str, str]) -> Told:
    """The group in torch's names. What the user has set stays."""
    problems = []
    local_name, local = group.local
    if local is None and not environment.get("LOCAL_RANK"):
        problems.append(
            f"{local_name}: not set, though {group.size[0]} is {group.size[1]}: set LOCAL_RANK, "
            "the number of each process on its host"
        )
    if group.first_host is None and not environment.get("MASTER_ADDR"):
        problems.append(
            f"MASTER_ADDR: not set, and {group.launcher} does not say where rank 0 of "
            f"{group.size[1]} ({group.size[0]}) runs: set it to that host for all (mpirun -x)"
        )
    if problems:
        return Told(problems=problems)
    found = {
        "RANK": str(group.rank[1]),
        "WORLD_SIZE": str(group.size[1]),
        "LOCAL_RANK": str(local),
        "MASTER_ADDR": str(group.first_host),
        "MASTER_PORT": str(port_of(group.job)),
    }
    if group.local_size is not None:
        found["LOCAL_WORLD_SIZE"] = str(group.local_size)
    changes = {name: text for name, text in found.items() if not environment.get(name)}
    if "TORCHELASTIC_USE_AGENT_STORE" in environment:  # of a torchrun that did not start this one
        changes["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    return Told(changes)


def _against(group: _Group, environment: Mapping[str, str]) -> list[str]:
    """What is wrong where RANK and WORLD_SIZE are set as well: by a torchrun that this group's
    processes run, or by hand."""
    size_name, size = group.size
    rank, world = (_number(environment[name]) for name in ("RANK", "WORLD_SIZE"))
    if rank is None or world is None:
        return []  # said of all launchers alike
    if world < size:
        return [
            f"WORLD_SIZE: {world}, but {group.launcher} started {size} processes ({size_name}), "
            "which would each train alone: unset RANK and WORLD_SIZE, or start one process a host "
            "that starts torchrun (docs/clusters.md)"
        ]
    by_hand = "TORCHELASTIC_RUN_ID" not in environment and "CROSS_RANK" not in environment
    if by_hand and world == size and rank != group.rank[1]:
        return [f"RANK: {rank}, but {group.rank[0]} is {group.rank[1]}: unset RANK and WORLD_SIZE"]
    return []


def _of_index(environment: Mapping[str, str], given: Mapping[str, str]) -> Told:
    """A pod of an indexed Job knows its number, and not of how many."""
    index = environment.get("JOB_COMPLETION_INDEX")
    if index is None or "RANK" in given:
        return Told()
    if "WORLD_SIZE" not in given:
        return Told(
            problems=[
                f"WORLD_SIZE: not set, though JOB_COMPLETION_INDEX is {index}: start torchrun in "
                "each pod (docs/clusters.md), or set WORLD_SIZE, 1 for pods that train apart"
            ]
        )
    if given["WORLD_SIZE"] == "1":
        return Told()
    return Told({"RANK": index} | ({} if "LOCAL_RANK" in environment else {"LOCAL_RANK": "0"}))


def _group(environment: Mapping[str, str], problems: list[str]) -> _Group | None:
    """The processes of which this is one, if they are several. mpirun may start its processes
    through srun, one a host: then what MPI says is meant."""
    task = _srun(environment, problems)
    for names in _MPI:
        group = _mpi(names, environment, problems)
        its_own = task and group and (task.rank[1], task.size[1]) == (group.rank[1], group.size[1])
        if group is not None and not its_own:
            return group if group.size[1] > 1 else None
    in_slurm = "SLURM_JOB_ID" in environment
    if task is None and not problems and not in_slurm and "PMIX_RANK" in environment:
        rank = environment["PMIX_RANK"]
        problems.append(
            f"PMIX_RANK: {rank}, and nothing says of how many: set RANK, WORLD_SIZE, LOCAL_RANK, "
            "MASTER_ADDR and MASTER_PORT, or use torchrun"
        )
    return task


def _mpi(names: _Names, environment: Mapping[str, str], problems: list[str]) -> _Group | None:
    if names.rank not in environment and names.size not in environment:
        return None
    rank, size = (_number(environment.get(name)) for name in (names.rank, names.size))
    if rank is None or size is None or rank >= size:
        problems.append(_half(names.launcher, names.rank, names.size, environment))
        return None
    local_size = _number(environment.get(names.local_size))
    job = next((environment[name] for name in names.job if name in environment), None)
    local = _number(environment.get(names.local))
    first_host = "127.0.0.1" if local_size == size else None
    return _Group(
        names.launcher,
        (names.rank, rank),
        (names.size, size),
        (names.local, local),
        local_size,
        first_host,
        job,
    )


def _srun(environment: Mapping[str, str], problems: list[str]) -> _Group | None:
    """The tasks of which this is one, if an srun started several."""
    if not _is_task(environment):
        return None
    sizes = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    size_name = next((name for name in sizes if name in environment), sizes[0])
    rank = _number(environment.get("SLURM_PROCID"))
    size = _number(environment.get(size_name))
    if rank is None or size is None or rank >= size:
        problems.append(_half("srun", "SLURM_PROCID", size_name, environment))
        return None
    if size == 1:
        return None
    lists = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = next((environment[name] for name in lists if environment.get(name)), "")
    host_count = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES")
    one_host = host_count == "1" or re.fullmatch(r"[^\[,]+", hosts) is not None
    node = _number(environment.get("SLURM_NODEID")) or 0
    each = _expanded(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return _Group(
        "srun",
        ("SLURM_PROCID", rank),
        (size_name, size),
        ("SLURM_LOCALID", _number(environment.get("SLURM_LOCALID"))),
        size if one_host else each[node] if node < len(each) else None,
        "127.0.0.1" if one_host else _first_host(hosts),
        f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}",
    )


def _is_task(environment: Mapping[str, str]) -> bool:
    """Whether an srun started this process as one of its tasks. A batch script, and the shell of
    `salloc`, are in no step or in one with a special number; the shell of `srun --pty` is the first
    task itself, and what it starts is not. An srun in that shell leaves SLURM_PTY_PORT as it was,
    but names each of its tasks in SLURM_TASK_PID."""
    if "SLURM_PROCID" not in environment:
        return False
    if environment["SLURM_PROCID"] != "0":
        return True
    step = environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID")
    if (_number(step) or 0) >= _SPECIAL_STEP:
        return False
    in_step = step or any(name in environment for name in _OF_A_STEP)
    in_shell = "SLURM_PTY_PORT" in environment or environment.get("SLURM_JOB_NAME") in _SHELLS
    return bool(in_step) and (not in_shell or environment.get("SLURM_TASK_PID") == str(os.getpid()))


_OF_A_STEP = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR")
_SHELLS = ("bash", "zsh", "sh", "fish", "tcsh", "csh", "ksh")
"""The name that `srun --pty bash` gives its job."""


def _half(launcher: str, rank: str, size: str, environment: Mapping[str, str]) -> str:
    found = ", ".join(f"{name} {environment.get(name, 'not set')}" for name in (rank, size))
    return (
        f"{rank}: expected the number of one of {size} processes, as {launcher} sets both, found "
        f"{found}: unset what an earlier launcher left"
    )


def _number(text: str | None) -> int | None:
    is_number = text is not None and text.isascii() and text.isdigit() and len(text) < 11
    return int(text) if text is not None and is_number else None


def port_of(job: str | None) -> int:
    """One of `job`'s own, so that two jobs may share a host; torch's usual one where the job has no
    name."""
    return DEFAULT_PORT if job is None else _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS


def _first_host(hosts: str) -> str | None:
    """Of SLURM's list: `a[003-005,7]-ib,b1` begins with a003-ib."""
    match = re.match(r"([^\[,]+)(?:\[([0-9]+)[^\]]*\]([^\[,]*))?(?:,|$)", hosts)
    return "".join(part or "" for part in match.groups()) if match else None


def _expanded(counts: str) -> list[int]:
    """Tasks of each host, of `4(x2),3`."""
    found = re.findall(r"([0-9]+)(?:\(x([0-9]+)\))?", counts)
    return [int(tasks) for tasks, hosts in found for _ in range(int(hosts or 1))]
