"""The hostfile of `deepspeed --hostfile`, read strictly: `HOST slots=N` on each line.

DeepSpeed parses the file before any code of ours runs, and takes what it should not: a host written
`-oProxyCommand=...` becomes an option of ssh and is executed, `slots=2x` is 2, `slots=0` is
accepted. So `doctor` reads it first, by the rules that a training run needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llama.errors import raise_if
from llama.files.inputs import nearest, read_text

HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A host's name or IPv4 address; nothing that ssh, pdsh or a shell would read as anything else."""

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SLOTS = re.compile(r"[1-9][0-9]{0,3}")
_LINE_END = re.compile(r"\r\n|\r|\n")  # as DeepSpeed splits: a form feed ends no comment
_BOM = b"\xef\xbb\xbf"
_BOM_MEANS = "which DeepSpeed takes for a part of the host's name: save the file without it"
_SHAPE = "expected HOST slots=N"


@dataclass(frozen=True)
class Host:
    """A line of a hostfile."""

    name: str
    """As it is handed to ssh: a host's name, or `user@name`."""
    slots: int
    """Processes on it: one for each GPU."""


def read_hostfile(path: Path) -> list[Host]:
    """The hosts in order. Raises one `UserError` with every problem, each with its line."""
    text = read_text(path)
    problems: list[str] = []
    with path.open("rb") as file:
        if file.read(len(_BOM)) == _BOM:
            problems.append(f"{path}: line 1: a byte order mark, {_BOM_MEANS}")
    hosts: list[Host] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_LINE_END.split(text), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}: line {number}"
        try:
            host = _host(words)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        machine = host.name.rpartition("@")[2].lower()
        if machine in seen:
            problems.append(f"{where}: {machine} is on line {seen[machine]} already")
        seen.setdefault(machine, number)
        hosts.append(host)
    if not hosts and not problems:
        problems.append(f"{path}: names no host: {_SHAPE} on each line")
    raise_if(problems)
    return hosts


def check_address(address: str) -> str | None:
    """Why `address` cannot be a host's name or address, or None; IPv6 is allowed here."""
    if HOST_NAME.fullmatch(address) or re.fullmatch(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", address):
        return None
    return f"expected a host's name or address, found {address!r}"


def _host(words: list[str]) -> Host:
    """Raises `ValueError` saying what is wrong with the words of a line."""
    name, *rest = words
    user, at, machine = name.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise ValueError(f"expected a user's name before the @, found {user!r}")
    if not HOST_NAME.fullmatch(machine):
        allowed = "a host's name holds letters, digits, '.', '_' and '-', and begins with none of"
        raise ValueError(f"{allowed} the last three; found {machine!r}")
    if not rest:
        raise ValueError(f"{_SHAPE}, found {name!r} alone")
    key, equals, count = rest[0].partition("=")
    if key != "slots" or not equals:
        raise ValueError(f"{_SHAPE}, found {rest[0]!r}{nearest(key, ['slots'])}")
    if not _SLOTS.fullmatch(count):
        raise ValueError(f"slots: expected an integer from 1 to 9999, found {count!r}")
    if len(rest) > 1 and not rest[1].startswith("#"):
        raise ValueError(f"{_SHAPE} and nothing after, found {rest[1]!r}")
    return Host(name, int(count))
