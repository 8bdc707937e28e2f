"""Every check of the settings of `doctor`, the hostfile included."""

from __future__ import annotations

import shutil

from llama.errors import UserError, raise_if
from llama.launch.hostfile import Host, check_address, read_hostfile
from llama.settings.doctor import DoctorOptions

__all__ = ["DoctorOptions", "checked_hosts"]


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
