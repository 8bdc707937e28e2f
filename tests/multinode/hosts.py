"""Two hosts made of one machine: each with its own network, processes, name, /run and sshd.

What makes them is the kernel's namespaces, and nothing has a name outside them: a host is its first
process, an sshd, and ends with it, its network and all that runs there with it. So nothing is left
behind, not even by a test run that is killed: each first process dies with what started it.

The ends of the cable between them have the same name, as the network cards of like hosts do.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.support.model_files import ROOT
from tests.support.tiny_runs import _OF_A_LAUNCHER

INTERFACE = "eth0"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "pdsh", "ssh", "ssh-keygen", "sshd")
TIMEOUT = 540
"""Seconds until commands on the hosts are given up."""

_FIRST_PROCESS = """
set -e
mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd
mount --bind "$1/hosts" /etc/hosts
hostname "$2"
read -r _  # the cable is in
exec "$(command -v sshd)" -D -e -f "$1/$2.sshd_config"
"""

T = TypeVar("T")
Done = subprocess.CompletedProcess[str]


def missing() -> str | None:
    """Why no hosts can be made here, or None."""
    if os.geteuid() != 0:
        return "two hosts are made by root only"
    if absent := [program for program in PROGRAMS if _program(program) is None]:
        return f"{', '.join(absent)} not installed: make install-multinode"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"])
    return "no namespaces can be made here" if tried.returncode else None


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@dataclass(frozen=True)
class Host:
    """One of the two."""

    name: str
    address: str
    pid: int
    """Of its first process, as seen from outside."""

    def command(self, *argv: str | Path) -> list[str]:
        """`argv`, to be started from outside, runs on this host from the current folder."""
        enter = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts"]
        return [*enter, f"--wd={ROOT}", "--", *map(str, argv)]

    def run(self, *argv: str | Path) -> str:
        """Standard output of a command that must succeed."""
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{argv} on {self.name}: {done.stdout}{done.stderr}"
        return done.stdout

    def sent(self) -> int:
        """Bytes that have left this host."""
        return sent_from(str(self.pid))


def sent_from(process: str) -> int:
    """Bytes that have left the host of a process (`self`: our own), headers included."""
    for line in Path(f"/proc/{process}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == INTERFACE:
            return int(counters.split()[8])
    raise AssertionError(f"process {process} has no {INTERFACE}")


@dataclass(frozen=True)
class Hosts:
    """Both, and what a user would have set up to run on them."""

    folder: Path
    hosts: tuple[Host, Host]

    def run(self, commands: Mapping[Host, Sequence[str | Path]]) -> list[Done]:
        """Start one command on each host named, wait for all."""
        children = [
            subprocess.Popen(
                host.command(*argv),
                cwd=ROOT,
                env=self.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for host, argv in commands.items()
        ]
        deadline = time.monotonic() + TIMEOUT
        return [_finished(child, deadline) for child in children]

    def environment(self) -> dict[str, str]:
        """That of a shell on either host. No settings of the machine's own user are seen."""
        kept = {k: v for k, v in os.environ.items() if k not in _OF_A_LAUNCHER}
        return kept | {
            "PATH": f"{Path(sys.executable).parent}:{kept.get('PATH', '')}:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder / "home"),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "DS_ENV_FILE": str(self.folder / "deepspeed_env"),
            "PDSH_SSH_ARGS_APPEND": " ".join(_ssh_options(self.folder)),
        }

    @property
    def hostfile(self) -> Path:
        return self.folder / "hostfile"


def _finished(child: subprocess.Popen[str], deadline: float) -> Done:
    try:
        out, errors = child.communicate(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        out, errors = child.communicate()
        errors += f"\ngiven up after {TIMEOUT} s"
    return subprocess.CompletedProcess(child.args, child.returncode, out, errors)


@contextlib.contextmanager
def two_hosts(folder: Path, private: Path | None = None) -> Iterator[Hosts]:
    """Both hosts, up and reachable from one another by ssh. They share the file system, but for
    the folder `private`, which the second sees empty and keeps for itself."""
    _write_settings(folder)
    with _first_process(folder, 0) as (first, one), _first_process(folder, 1) as (second, two):
        cable = [INTERFACE, "netns", first.pid, "type", "veth", "peer", "name", INTERFACE]
        _outside("ip", "link", "add", *cable, "netns", second.pid)
        for host in (first, second):
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "address", "add", f"{host.address}/24", "dev", INTERFACE)
            host.run("ip", "link", "set", INTERFACE, "up")
        if private is not None:
            second.run("mount", "-t", "tmpfs", "tmpfs", private)
        for host, starter in ((first, one), (second, two)):
            assert starter.stdin is not None
            starter.stdin.write("the cable is in\n")
            starter.stdin.flush()
            login = first.command("ssh", *_ssh_options(folder), host.address, "true")
            answers = functools.partial(_succeeds, login)
            _eventually(answers, f"no sshd on {host.name}: {folder}/{host.name}.log")
        yield Hosts(folder, (first, second))


def _write_settings(folder: Path) -> None:
    (folder / "home").mkdir()
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f"]
    _outside(*key, folder / "user_key")
    known, names = [], ["127.0.0.1 localhost"]
    for i, address in enumerate(ADDRESSES):
        name = _name(i)
        _outside(*key, folder / f"{name}.key")
        known.append(f"{address} {(folder / f'{name}.key.pub').read_text()}")
        names.append(f"{address} {name}")
        (folder / f"{name}.sshd_config").write_text(
            f"ListenAddress {address}\nHostKey {folder}/{name}.key\n"
            f"AuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
        )
    (folder / "known_hosts").write_text("".join(known))
    (folder / "hosts").write_text("\n".join(names) + "\n")
    (folder / "hostfile").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    (folder / "deepspeed_env").write_text(f"GLOO_SOCKET_IFNAME={INTERFACE}\nOMP_NUM_THREADS=1\n")


def _name(index: int) -> str:
    return f"host{index}"


def _ssh_options(folder: Path) -> list[str]:
    options = ["IdentitiesOnly=yes", "BatchMode=yes", f"UserKnownHostsFile={folder}/known_hosts"]
    return ["-F", "none", "-i", f"{folder}/user_key", *(f"-o{option}" for option in options)]


@contextlib.contextmanager
def _first_process(folder: Path, index: int) -> Iterator[tuple[Host, subprocess.Popen[str]]]:
    """A host with no network yet: it waits for a line on its standard input."""
    own = ["--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child=KILL"]
    start = ["setpriv", "--pdeathsig", "KILL", "unshare", *own]
    with (folder / f"{_name(index)}.log").open("w") as log:
        starter = subprocess.Popen(
            [*start, "sh", "-c", _FIRST_PROCESS, "host", str(folder), _name(index)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
        )
    try:
        yield Host(_name(index), ADDRESSES[index], _child_of(starter)), starter
    finally:
        starter.kill()  # and with it, by --kill-child, the host
        starter.wait()


def _child_of(starter: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children")
    return int(_eventually(lambda: children.read_text().split(), "a host has not started")[0])


def _eventually(attempt: Callable[[], T], what: str) -> T:
    """What `attempt` gives, once that is something; for at most 20 s."""
    deadline = time.monotonic() + 20
    while not (result := attempt()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return result


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _outside(*argv: object) -> None:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
