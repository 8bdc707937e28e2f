"""`doctor` over the hostfile of two real hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.multinode.hosts import Hosts
from tests.support.tiny_runs import succeeded, write_rows


def doctor(hosts: Hosts, data: Path, *argv: str | Path) -> Any:
    first, _ = hosts.hosts
    command = ["python", "launcher/doctor.py", "--hostfile", hosts.hostfile]
    command += ["--master_addr", first.address, "--output_dir", hosts.folder / "out"]
    (done,) = hosts.run({first: [*command, "--data", data, "--size_mb", "4", "--json", *argv]})
    return done


def test_two_good_hosts_pass_and_really_reduce(hosts: Hosts, tmp_path: Path) -> None:
    before = [host.sent() for host in hosts.hosts]
    result = succeeded(doctor(hosts, write_rows(tmp_path / "rows.json")))
    assert result["verdict"] == "ok", result
    for host, was in zip(hosts.hosts, before, strict=True):
        assert host.sent() - was > 4 << 20


def test_other_data_on_one_host_is_found(hosts: Hosts, tmp_path: Path) -> None:
    rows, other = write_rows(tmp_path / "rows.json"), write_rows(tmp_path / "other.json", 12)
    second = hosts.hosts[1]
    second.run("mount", "--bind", other, rows)
    try:
        done = doctor(hosts, rows)
    finally:
        second.run("umount", rows)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "data" in done.stdout and second.address in done.stdout and "FAIL" in done.stdout
