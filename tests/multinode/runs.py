"""`train` on the two hosts, one rank on each, by either launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tests.multinode.hosts import Done, Hosts

PORT = "29501"
"""Of the ranks' meeting place; a network that nobody else is on has every port free."""


def train_on_both(
    hosts: Hosts, launcher: Literal["deepspeed", "torchrun"], *argv: str | Path
) -> Done:
    """Run `launcher/train.py` with `argv`; rank 0 is on the first host."""
    first, second = hosts.hosts
    meeting = ("--master_addr", first.address, "--master_port", PORT)
    if launcher == "deepspeed":
        # -N: pdsh would put the host's name before every line, our JSON included.
        start = ["deepspeed", "--hostfile", hosts.hostfile, "--no_ssh_check", "--launcher_args=-N"]
        start += meeting
        return hosts.run({first: [*start, "launcher/train.py", *argv]})[0]
    commands = {
        host: [
            *("torchrun", "--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1"),
            *(*meeting, "launcher/train.py", *argv),
        ]
        for rank, host in enumerate((first, second))
    }
    done, other = hosts.run(commands)
    assert other.returncode == 0, other.stdout + other.stderr
    return done
