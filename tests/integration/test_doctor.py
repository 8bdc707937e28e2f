"""`doctor` as a user starts it: on this machine, and over ssh to sshd on two loopback addresses."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama.commands.doctor.command import doctor
from llama.commands.doctor.options import DoctorOptions
from llama.settings.options import run_command
from tests.support import skips
from tests.support.model_files import ROOT, TINY, random_state, write_meta
from tests.support.ports import free_port
from tests.support.tiny_runs import launched, write_rows

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
HOSTS = ("127.0.0.1", "127.0.0.2")


def rows(document: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    """(check, host) to (verdict, found)."""
    return {(r["check"], r["host"]): (r["verdict"], r["found"]) for r in document["checks"]}


@pytest.fixture
def ssh_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an `ssh` that stands before the real one writes each call of it."""
    (folder := tmp_path / "bin").mkdir()
    calls = tmp_path / "calls"
    (folder / "ssh").write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(calls))}\nexit 255\n')
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return calls


def run(*argv: str | Path) -> int:
    return run_command(doctor, DoctorOptions, "doctor.py", "", [str(word) for word in argv])


@pytest.mark.parametrize(
    "text",
    ["-oProxyCommand=touch${IFS}HERE slots=1\n", "a slots=2x\n", "a slots=0\n", "a b\n", ""],
)
def test_a_bad_hostfile_is_one_line_and_nothing_is_executed(
    text: str, tmp_path: Path, ssh_calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "hosts").write_text(text)
    assert run("--hostfile", path) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"error: --hostfile: {path}: ") and said.out == ""
    assert not ssh_calls.exists()


def test_every_mistake_at_once(
    tmp_path: Path, ssh_calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "hosts").write_text("a slots=0\na slots=1\nb slots=1\nb slots=1\n")
    numbers = ["--master_port", "0", "--ssh_port", "65536", "--size_mb", "0", "--timeout", "1"]
    words = ["--hostfile", path, "--ranks", "2", "--master_addr", "-a", *numbers]
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8 and all(line.startswith("error: --") for line in lines)
    assert not ssh_calls.exists()


def test_hosts_that_cannot_be_reached(
    tmp_path: Path, ssh_calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sound neighbour of the above: here ssh is called, once a host, and never asks."""
    (path := tmp_path / "hosts").write_text("a slots=1\nuser@b slots=1\n")
    assert run("--hostfile", path, "--json") == 1
    said = capsys.readouterr()
    document = json.loads(said.out.splitlines()[-1])
    verdicts = rows(document)
    assert document["verdict"] == "failed" and document["all_reduce"] is None
    assert {verdicts["answer", host][0] for host in ("a", "user@b")} == {"FAIL"}
    assert verdicts["all-reduce", "every host"][0] == "skip"
    calls = ssh_calls.read_text().splitlines()
    assert sorted(call.split(" -- ")[1].split()[0] for call in calls) == ["a", "user@b"]
    assert all(call.startswith("-o BatchMode=yes") for call in calls)
    assert "mend what failed" in said.err


@pytest.mark.slow
def test_this_machine(tmp_path: Path) -> None:
    """Two processes, gloo; the model and the data are hashed; the table fits a terminal."""
    model, data = tmp_path / "model", write_rows(tmp_path / "rows.json")
    write_meta(model, TINY, random_state(TINY))
    words = ["--model", model, "--data", data, "--output_dir", tmp_path / "new" / "runs"]
    words += ["--ranks", "2", "--size_mb", "1", "--master_port", str(free_port()), "--json"]
    done = launched("python", "doctor.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["verdict"] == "ok"
    assert {row["verdict"] for row in document["checks"]} == {"ok"}
    measured = document["all_reduce"]
    assert (measured["ranks"], measured["bytes"]) == (2, 2**20)
    expected = 2**20 / measured["seconds"]  # 2 (n - 1) / n is 1 for two ranks
    assert measured["bus_bytes_per_second"] == pytest.approx(expected)
    assert all(len(line) <= 100 for line in done.stderr.splitlines())
    assert "what to do" in done.stderr and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert run("--master_port", str(server.getsockname()[1])) == 1
    said = capsys.readouterr().out
    assert "in use" in said and "--master_port" in said and "mend what failed" in said


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """Port of an sshd of ours on two loopback addresses, and the options of ssh that it needs."""
    if SSHD is None or shutil.which("ssh-keygen") is None:
        skips.skip(skips.HOSTS, "sshd and ssh-keygen (package openssh-server)")
    folder, port = tmp_path_factory.mktemp("sshd"), free_port()
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(command, check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd of Debian starts in it
    settings = {
        "Port": port,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
    }
    lines = [f"{name} {value}" for name, value in settings.items()]
    lines += [f"ListenAddress {host}" for host in HOSTS]
    (config := folder / "sshd_config").write_text("\n".join(lines) + "\n")
    server = subprocess.Popen([SSHD, "-D", "-f", str(config), "-E", str(folder / "log")])
    try:
        _wait_for(port, server, folder / "log")
        known = f"-o UserKnownHostsFile={folder}/known -o StrictHostKeyChecking=accept-new"
        yield port, f"-F none -i {folder}/user {known} -o LogLevel=ERROR"
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        with socket.socket() as client:
            if client.connect_ex((HOSTS[1], port)) == 0:
                return
        if server.poll() is not None:
            skips.skip(skips.HOSTS, f"sshd does not start here: {log.read_text()[-200:]}")
        time.sleep(0.1)
    pytest.fail("sshd does not listen")


@pytest.mark.slow
def test_two_hosts_over_ssh(sshd: tuple[int, str], tmp_path: Path) -> None:
    """The ranks meet through .deepspeed_env's interface; a third host is not there."""
    port, ssh_options = sshd
    (tmp_path / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=lo\n")
    (tmp_path / "rows.json").write_text("[]")
    (hosts := tmp_path / "hosts").write_text("".join(f"{host} slots=1\n" for host in HOSTS))
    common = ["--ssh_port", str(port), "--size_mb", "1", "--master_addr", HOSTS[1], "--json"]

    def started(*more: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, ROOT / "launcher/doctor.py", *common, *more],
            cwd=tmp_path,
            env=os.environ
            | {"PDSH_SSH_ARGS_APPEND": ssh_options, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout.splitlines()[-1])

    data = ["--data", "rows.json", "--master_port", str(free_port())]
    status, document = started("--hostfile", str(hosts), *data)
    assert status == 0, document["checks"]
    assert document["all_reduce"]["ranks"] == 2 and document["all_reduce"]["backend"] == "gloo"
    verdicts = rows(document)
    for host in HOSTS:
        assert verdicts["interface", host] == ("ok", "GLOO_SOCKET_IFNAME=lo")
        assert verdicts["all-reduce", host] == ("ok", "1 MiB summed rightly")
        assert verdicts["data", host][0] == "ok"
    hosts.write_text(f"{HOSTS[0]} slots=1\n127.0.0.3 slots=1\n")
    status, document = started("--hostfile", str(hosts))
    verdicts = rows(document)
    assert status == 1 and verdicts["answer", HOSTS[0]][0] == "ok"
    verdict, found = verdicts["answer", "127.0.0.3"]
    assert verdict == "FAIL" and found.startswith("ssh: connect to host 127.0.0.3")
