"""`launcher/doctor.py`: ask every host, judge, reduce over all of them, print the table."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import torch

from llama.commands.doctor import reach
from llama.commands.doctor.allreduce import bus_bandwidth
from llama.commands.doctor.judge import Check, Report, judge_all_reduce, judge_probes
from llama.commands.doctor.options import DoctorOptions, checked_hosts
from llama.commands.doctor.probe import boot_id
from llama.commands.doctor.table import table
from llama.files.json_text import json_text
from llama.launch.hostfile import Host

_HERE = "this machine"


def doctor(options: DoctorOptions) -> int:
    """Print the table; 1 if any row is FAIL. `UserError` comes before any host is asked."""
    hosts = checked_hosts(options)
    ways = Ways(options, hosts)
    names = "this machine" if hosts is None else f"{len(ways.hosts)} hosts by ssh"
    _say(f"asking {names} (at most {options.timeout} s)")
    reports = ways.probe()
    rows = [*ways.judge_launch(reports), *judge_probes(reports, options.master_port)]
    measured = None
    if not any(row.verdict == "FAIL" for row in rows):
        more, measured = ways.all_reduce(reports)
        rows += more
    else:
        every = "every host" if hosts else _HERE
        rows.append(Check("all-reduce", every, "not tried", "skip", "mend what failed above first"))
    failed = any(row.verdict == "FAIL" for row in rows)
    _print(options, rows, reports, measured, failed)
    return int(failed)


class Ways:
    """The hosts, and how a module of ours is started on each."""

    def __init__(self, options: DoctorOptions, hosts: list[Host] | None) -> None:
        self.options = options
        self.by_ssh = hosts is not None
        self.hosts = hosts or [Host(_HERE, options.ranks or torch.cuda.device_count() or 2)]
        self.exports: list[str] = []
        if self.by_ssh:
            self.exports = reach.exports(os.environ, torch.cuda.is_available())

    def probe(self) -> list[Report]:
        options = self.options
        request = {
            "master_addr": options.master_addr or (None if self.by_ssh else "127.0.0.1"),
            "port": options.master_port,
            "output_dir": str(options.output_dir),
            "data": [str(path) for path in options.data],
            "model": options.model,
        }
        replies = self._run("probe", [request] * len(self.hosts))
        return [Report(host, reply) for host, reply in zip(self.hosts, replies, strict=True)]

    def all_reduce(self, reports: Sequence[Report]) -> tuple[list[Check], dict[str, Any] | None]:
        """The rows, and what was measured where every rank came through. The first rank listens
        where DeepSpeed would have it."""
        assert reports[0].probe is not None
        address = str(reports[0].probe["address"])
        world = sum(host.slots for host in self.hosts)
        size = self.options.size_mb * 2**20
        where = f"{address}:{self.options.master_port}"
        _say(f"reducing {self.options.size_mb} MiB over {world} ranks through {where}")
        common = {
            "address": address,
            "port": self.options.master_port,
            "world": world,
            "bytes": size,
            "cuda": all(r.probe and r.probe["devices"] for r in reports),
        }
        requests, first_rank = [], 0
        for host in self.hosts:
            requests.append(common | {"first_rank": first_rank, "local_ranks": host.slots})
            first_rank += host.slots
        replies = self._run("allreduce", requests)
        rows = judge_all_reduce(reports, replies, size, where)
        if any(row.verdict == "FAIL" for row in rows):
            return rows, None
        records = [record for reply in replies for record in reply.records]
        seconds = max(record["seconds"] for record in records if record.get("stage") == "reduced")
        measured = {
            "ranks": world,
            "bytes": size,
            "seconds": seconds,
            "backend": "nccl" if common["cuda"] else "gloo",
            "bus_bytes_per_second": bus_bandwidth(size, seconds, world),
        }
        return [*rows, _bandwidth(measured, "every host" if self.by_ssh else _HERE)], measured

    def judge_launch(self, reports: Sequence[Report]) -> list[Check]:
        """What stands between this machine and `deepspeed --hostfile`."""
        if not self.by_ssh:
            return []
        rows = []
        if shutil.which("pdsh") is None:
            todo = "install pdsh, which `deepspeed --hostfile` starts; torchrun needs none"
            rows.append(Check("launch", _HERE, "no pdsh", "warn", todo))
        folder = os.getcwd()
        if shlex.quote(folder) != folder:
            todo = "`deepspeed --hostfile` writes it unquoted: rename it"
            rows.append(Check("launch", _HERE, f"folder {folder!r}", "warn", todo))
        if os.environ.get(reach.SSH_ARGUMENTS) and not self.options.master_addr:
            todo = "DeepSpeed's own check leaves it out: give it --no_ssh_check --master_addr A"
            rows.append(Check("launch", _HERE, f"{reach.SSH_ARGUMENTS} is set", "warn", todo))
        probe = reports[0].probe
        if len(reports) == 1 and probe and probe["boot"] != boot_id():
            todo = "DeepSpeed trains on this machine where one host is named: give --force_multi"
            rows.append(Check("launch", reports[0].host.name, "the one host", "warn", todo))
        return rows

    def _run(self, module: str, requests: Sequence[dict[str, Any]]) -> list[reach.Reply]:
        commands = []
        limit = {"limit": self.options.timeout}
        for host, request in zip(self.hosts, requests, strict=True):
            words = ["-m", f"llama.commands.doctor.{module}", json.dumps(request | limit)]
            if self.by_ssh:
                ssh = reach.ssh_command(host.name, self.options.ssh_port)
                commands.append([*ssh, reach.remote_command(words, self.exports)])
            else:
                commands.append([sys.executable, "-u", *words])
        return reach.ask(commands, self.options.timeout)


def _bandwidth(measured: dict[str, Any], host: str) -> Check:
    ranks, backend = measured["ranks"], measured["backend"]
    if ranks == 1:
        return Check("bandwidth", host, f"1 rank, {backend}: nothing crosses", "ok")
    speed = f"{measured['bus_bytes_per_second'] / 1e9:.2f} GB/s of bus"
    return Check("bandwidth", host, f"{speed}, {ranks} ranks, {backend}", "ok")


def _print(
    options: DoctorOptions,
    rows: Sequence[Check],
    reports: Sequence[Report],
    measured: dict[str, Any] | None,
    failed: bool,
) -> None:
    counts = {v: sum(row.verdict == v for row in rows) for v in ("FAIL", "warn")}
    end = "all well" if not failed else f"{counts['FAIL']} failed"
    if counts["warn"]:
        end += f", {counts['warn']} to look at"
    text = f"{table(rows)}\n\n{end}"
    print(text, file=sys.stderr if options.json else sys.stdout)
    if options.json:
        document = {
            "verdict": "failed" if failed else "ok",
            "checks": [dataclasses.asdict(row) for row in rows],
            "hosts": {report.host.name: report.probe for report in reports},
            "all_reduce": measured,
        }
        print(json_text(document))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
