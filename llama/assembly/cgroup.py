"""What the process's control group still lets it take of a machine's memory.

A container, a job of a batch system or a systemd slice is given less than the machine has, and the
kernel ends it at that limit however much is free outside. Limits are nested: each group on the way
up to the root bounds what is below it. The files are those of the kernel's documents
`admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/memory.rst`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Files(NamedTuple):
    """The names that one version of control groups gives to what is asked here."""

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
        for folder, top, files in _groups(process)
        for group in (folder, *folder.parents)
        if group.is_relative_to(top) and (room := _room(group, files)) is not None
    ]
    return min(rooms, default=None)


def _groups(process: Path) -> Iterator[tuple[Path, Path, _Files]]:
    """The folder of each control group that counts memory, and that of the uppermost to be seen."""
    mounts = list(_mounts(_lines(process / "mountinfo")))
    for line in _lines(process / "cgroup"):  # as `0::/user.slice` (v2) or `4:memory:/docker/7a`
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        is_v2 = number == "0" and not controllers
        if not is_v2 and "memory" not in controllers.split(","):
            continue
        files = _V2 if is_v2 else _V1
        seen = [(root, top) for kind, root, top in mounts if kind is files]
        group = PurePosixPath(path)
        holding = [(group.relative_to(r), top) for r, top in seen if group.is_relative_to(r)]
        # A container may be shown its own group alone, under a name that it does not have inside.
        for inside, top in holding or [(PurePosixPath(), top) for _, top in seen]:
            yield top / inside, top, files


def _mounts(lines: list[str]) -> Iterator[tuple[_Files, str, Path]]:
    """Of the lines of mountinfo (proc(5)) those of control groups with memory: the version, the
    group that is mounted, and where."""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind:
            continue
        is_v1 = kind[0] == "cgroup" and "memory" in kind[-1].split(",")
        if is_v1 or kind[0] == "cgroup2":
            root, where = map(_plain, fields[3:5])
            yield _V1 if is_v1 else _V2, root, Path(where)


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
