"""The settings of `doctor`, and every check of them, the hostfile included."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from llama.errors import UserError, raise_if
from llama.launch.hostfile import Host, check_address, read_hostfile


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Settings of `doctor`."""

    hostfile: Path | None = None
    """The hostfile that deepspeed will be given, asked over ssh; none means this machine."""
    model: str | None = None
    """A model, named as in train, whose files must be the same on every host."""
    data: list[Path] = field(default_factory=list)
    """Files or folders of shards, as in train, that must be the same on every host."""
    output_dir: Path = Path("runs")
    """Folder that the run will write, on the first host."""
    master_addr: str | None = None
    """Address of the first host; none means the first that hostname -I gives there, as in
    deepspeed."""
    master_port: int = 29500
    """Port on which the ranks meet, as in deepspeed."""
    ssh_port: int | None = None
    """Port of ssh, as in deepspeed; none means ssh's own."""
    ranks: int | None = None
    """Processes of the all-reduce on this machine; none means one for each GPU, or 2 without."""
    size_mb: int = 64
    """Size of the all-reduce, in MiB."""
    timeout: int = 120
    """Seconds that a host may take to answer, and the all-reduce to end; hashing a large model
    takes longer."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""


def checked_hosts(options: DoctorOptions) -> list[Host] | None:
    """The hosts of the hostfile, if one is given; raises one `UserError` with every problem."""
    problems = []
    ranges = {"master_port": (1, 2**16), "ssh_port": (1, 2**16), "ranks": (1, 2**16)}
    ranges |= {"size_mb": (1, 2**20), "timeout": (10, 2**20)}
    for name, (least, limit) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value < limit:
            problems.append(f"--{name}: expected from {least} to {limit - 1}, found {value}")
    if options.master_addr is not None and (problem := check_address(options.master_addr)):
        problems.append(f"--master_addr: {problem}")
    hosts = None
    if options.hostfile is not None:
        if options.ranks is not None:
            problems.append("--ranks: the hostfile's slots say it; give one of them")
        try:
            hosts = read_hostfile(options.hostfile)
        except UserError as error:
            problems += [f"--hostfile: {problem}" for problem in error.problems]
        if shutil.which("ssh") is None:
            problems.append("--hostfile: ssh is not installed on this machine")
    raise_if(problems)
    return hosts
