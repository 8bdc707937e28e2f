"""What the process's control group lets it take of a machine's memory and CPUs.

A container, a job of a batch system or a systemd slice is given less than the machine has, and the
kernel ends it, or has it wait, at that limit however much is free outside. Limits are nested: each
group on the way up to the root bounds what is below it. The files are those of the kernel's
documents `admin-guide/cgroup-v2.rst`, `admin-guide/cgroup-v1/memory.rst` and
`scheduler/sched-bwc.rst`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Files(NamedTuple):
    """The names that one version of control groups gives to what is asked here of memory."""

    limits: tuple[str, ...]
    used: str
    cache: str
    """Of `memory.stat`: pages of files not in use of late, which count as used, but are given back
    as soon as someone wants the memory. A model's weights read from disk leave many."""


_V2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def cgroup_room(process: Path = Path("/proc/self")) -> int | None:
    """Bytes that the tightest of the control groups of `process` (its folder under /proc) has left,
    at least 0; None where none has a limit (v1 writes one near 2**63 instead, which bounds nothing)
    and where there are no control groups."""
    rooms = [
        room
        for group, is_v2 in _upwards(process, "memory")
        if (room := _room(group, _V2 if is_v2 else _V1)) is not None
    ]
    return min(rooms, default=None)


def cgroup_cpus(process: Path = Path("/proc/self")) -> float | None:
    """CPUs of which the tightest of the control groups of `process` grants the time, as 1.5; None
    where none has a limit."""
    found = [_cpus(group, is_v2) for group, is_v2 in _upwards(process, "cpu")]
    return min((cpus for cpus in found if cpus is not None), default=None)


def _upwards(process: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folders of the control groups that count `controller`, from that of `process` up to the
    uppermost to be seen, and whether they are of version 2."""
    for folder, top, is_v2 in _groups(process, controller):
        for group in (folder, *folder.parents):
            if group.is_relative_to(top):
                yield group, is_v2


def _groups(process: Path, controller: str) -> Iterator[tuple[Path, Path, bool]]:
    """The folder of each control group that counts `controller`, and that of the uppermost."""
    mounts = list(_mounts(_lines(process / "mountinfo"), controller))
    for line in _lines(process / "cgroup"):  # as `0::/user.slice` (v2) or `4:memory:/docker/7a`
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        is_v2 = number == "0" and not controllers
        if not is_v2 and controller not in controllers.split(","):
            continue
        seen = [(root, top) for second, root, top in mounts if second == is_v2]
        group = PurePosixPath(path)
        holding = [(group.relative_to(r), top) for r, top in seen if group.is_relative_to(r)]
        # A container may be shown its own group alone, under a name that it does not have inside.
        for inside, top in holding or [(PurePosixPath(), top) for _, top in seen]:
            yield top / inside, top, is_v2


def _mounts(lines: list[str], controller: str) -> Iterator[tuple[bool, str, Path]]:
    """Of the lines of mountinfo (proc(5)) those of control groups with `controller`: whether they
    are of version 2, the group that is mounted, and where."""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind:
            continue
        is_v1 = kind[0] == "cgroup" and controller in kind[-1].split(",")
        if is_v1 or kind[0] == "cgroup2":
            root, where = map(_plain, fields[3:5])
            yield not is_v1, root, Path(where)


def _plain(path: str) -> str:
    """`path` as mountinfo writes it: a space is `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _room(group: Path, files: _Files) -> int | None:
    """What is left below the limit of one group."""
    limits = [int(text) for name in files.limits if (text := _text(group / name)).isdigit()]
    used = _text(group / files.used)
    if not limits or not used.isdigit():
        return None
    cache = [line.split()[1] for line in _lines(group / "memory.stat") if _is(line, files.cache)]
    return max(0, min(limits) - int(used) + sum(map(int, cache)))


def _cpus(group: Path, is_v2: bool) -> float | None:
    """The limit of one group: time that it may run in each period of time."""
    if is_v2:
        quota, period = [*_text(group / "cpu.max").split(), "", ""][:2]
    else:
        quota, period = (_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if not quota.isdigit() or not period.isdigit() or not int(period):
        return None  # `max`, or -1
    return int(quota) / int(period)


def _is(line: str, name: str) -> bool:
    return line.split()[:1] == [name]


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    """Nothing where it cannot be read: there is no such group, or we may not look."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
