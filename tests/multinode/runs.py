"""What is started on the two hosts: one rank on each, where nothing else is said."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tests.multinode.hosts import Done, Hosts

Launcher = Literal["deepspeed", "torchrun"]

PORT = "29501"
"""Of the ranks' meeting place; on a network of one's own every port is free."""


def on_both(hosts: Hosts, *argv: str | Path, each: int = 1) -> list[Done]:
    """A torchrun on each host, which starts `argv` in `each` ranks; rank 0 is on the first."""
    meeting = ("--master_addr", hosts.hosts[0].address, "--master_port", PORT)
    start = ("torchrun", "--nnodes", "2", "--nproc_per_node", str(each), *meeting)
    return hosts.run(
        {h: [*start, "--node_rank", str(rank), *argv] for rank, h in enumerate(hosts.hosts)}
    )


def by_hostfile(hosts: Hosts, *argv: str | Path) -> Done:
    """One deepspeed on the first host, which starts `argv` on both by pdsh."""
    first, _ = hosts.hosts
    # -N: pdsh would put the host's name before every line, our JSON included.
    start = ("deepspeed", "--hostfile", hosts.hostfile, "--no_ssh_check", "--launcher_args=-N")
    meeting = ("--master_addr", first.address, "--master_port", PORT)
    return hosts.run({first: [*start, *meeting, *argv]})[0]


def train_on_both(hosts: Hosts, launcher: Launcher, *argv: str | Path) -> Done:
    """`train` with `argv`: what became of it where rank 0 is."""
    if launcher == "deepspeed":
        return by_hostfile(hosts, "launcher/train.py", *argv)
    done, other = on_both(hosts, "launcher/train.py", *argv)
    assert other.returncode == 0, other.stdout + other.stderr
    return done
