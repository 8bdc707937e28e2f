"""What control groups leave of a machine's memory and CPUs, read from trees of files like the
kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.launch.cgroup import cgroup_cpus, cgroup_room

GIB = 2**30
NO_LIMIT = 2**63 - 4096
"""How version 1 writes that there is none."""


class Machine:
    """A folder that stands for /proc/self, and one that stands for /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.process, self.top = folder / "self", folder / "sys fs" / "cgroup"
        self.process.mkdir()
        self.top.mkdir(parents=True)

    def mounts(self, *lines: str) -> None:
        text = "".join(line.replace("TOP", str(self.top).replace(" ", r"\040")) for line in lines)
        (self.process / "mountinfo").write_text(text)

    def member_of(self, *lines: str) -> None:
        (self.process / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def group(self, path: str, **files: object) -> None:
        folder = self.top / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name.replace("__", ".")).write_text(f"{value}\n")


V2 = "30 23 0:26 / TOP rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / TOP rw - tmpfs tmpfs rw,mode=755\n"
    "35 31 0:31 / TOP/cpu rw - cgroup cgroup rw,cpu\n"
    "36 31 0:32 ROOT TOP/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ((8 * GIB, 3 * GIB), ("max", GIB), 5 * GIB),
        ((8 * GIB, 3 * GIB), (2 * GIB, GIB), GIB),
        ((8 * GIB, 7 * GIB), (4 * GIB, GIB), GIB),  # a neighbour in the same slice uses the rest
        ((2 * GIB, 3 * GIB), ("max", GIB), 0),  # the limit was lowered
        (("max", 3 * GIB), ("max", GIB), None),
    ],
)
def test_version_2(machine: Machine, outer: tuple, inner: tuple, expected: int | None) -> None:
    """The tightest on the way up counts, wherever it is."""
    machine.mounts(V2)
    machine.member_of("0::/jobs/run 7/task")
    machine.group("jobs", memory__max=outer[0], memory__current=outer[1])
    machine.group("jobs/run 7", memory__max=inner[0], memory__current=inner[1])
    machine.group("jobs/run 7/task", memory__max="max", memory__current=4096)
    machine.group("other", memory__max=1, memory__current=1)
    assert cgroup_room(machine.process) == expected


def test_files_in_the_cache_are_given_back_and_a_throttle_is_a_limit(machine: Machine) -> None:
    machine.mounts(V2)
    machine.member_of("0::/job")
    machine.group("job", memory__max=8 * GIB, memory__current=6 * GIB)
    assert cgroup_room(machine.process) == 2 * GIB
    machine.group("job", memory__stat=f"anon {GIB}\ninactive_file {3 * GIB}\nactive_file 1")
    assert cgroup_room(machine.process) == 5 * GIB
    machine.group("job", memory__high=7 * GIB)
    assert cgroup_room(machine.process) == 4 * GIB


def test_a_container_of_version_2_is_the_root_of_what_it_sees(machine: Machine) -> None:
    machine.mounts(V2)
    machine.member_of("0::/")
    machine.group("", memory__max=4 * GIB, memory__current=GIB)
    assert cgroup_room(machine.process) == 3 * GIB


@pytest.mark.parametrize("controllers", ["memory", "cpu,memory"])
def test_version_1(machine: Machine, controllers: str) -> None:
    machine.mounts(V1.replace("ROOT", "/").replace("rw,memory", f"rw,{controllers}"))
    machine.member_of("5:cpu:/", f"4:{controllers}:/slurm/job_3", "0::/")
    limits = {"memory__limit_in_bytes": NO_LIMIT, "memory__usage_in_bytes": 2 * GIB}
    machine.group("memory", **limits)
    machine.group("memory/slurm/job_3", **limits)
    assert (cgroup_room(machine.process) or 0) > 2**62
    machine.group("memory/slurm", **limits | {"memory__limit_in_bytes": 6 * GIB})
    assert cgroup_room(machine.process) == 4 * GIB
    machine.group("memory/slurm", memory__stat=f"inactive_file 5\ntotal_inactive_file {GIB}")
    assert cgroup_room(machine.process) == 5 * GIB


@pytest.mark.parametrize("name", ["/docker/7a", "/elsewhere"])
def test_a_container_of_version_1_sees_its_own_group_alone(machine: Machine, name: str) -> None:
    """It is mounted under its name outside, which need not be the one that the process is told."""
    machine.mounts(V1.replace("ROOT", "/docker/7a"))
    machine.member_of(f"4:memory:{name}")
    machine.group("memory", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB)
    assert cgroup_room(machine.process) == GIB


def test_where_there_are_none(machine: Machine) -> None:
    assert cgroup_room(machine.process) is None  # no such files: not Linux
    machine.mounts(V2)
    machine.member_of("0::/gone", "what is this", "")
    assert cgroup_room(machine.process) is None
    machine.group("gone", memory__max="max")
    assert cgroup_room(machine.process) is None


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("400000 100000", "150000 100000", 1.5),
        ("100000 50000", "max 100000", 2.0),
        ("max 100000", "max 100000", None),
        ("max 100000", "what is this", None),
    ],
)
def test_cpus_of_version_2(
    machine: Machine, outer: str, inner: str, expected: float | None
) -> None:
    machine.mounts(V2)
    machine.member_of("0::/jobs/task")
    machine.group("jobs", cpu__max=outer)
    machine.group("jobs/task", cpu__max=inner)
    assert cgroup_cpus(machine.process) == expected


def test_cpus_of_version_1(machine: Machine) -> None:
    machine.mounts(V1.replace("rw,cpu\n", "rw,cpu,cpuacct\n"))
    machine.member_of("4:memory:/", "5:cpu,cpuacct:/docker/7a", "0::/")
    assert cgroup_cpus(machine.process) is None
    machine.group("cpu/docker/7a", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    assert cgroup_cpus(machine.process) is None
    machine.group("cpu/docker", cpu__cfs_quota_us=250_000, cpu__cfs_period_us=100_000)
    assert cgroup_cpus(machine.process) == 2.5
