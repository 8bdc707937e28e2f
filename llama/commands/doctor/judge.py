"""What hosts found, judged: a list of rows, each with what to do where it is not well."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llama.commands.doctor.probe import code_hash
from llama.commands.doctor.reach import Reply, printable
from llama.launch.hostfile import Host
from llama.launch.packages import COMPUTING

Verdict = Literal["ok", "warn", "FAIL", "skip"]
"""`skip` is what could not be looked at because of a FAIL elsewhere."""

CLOCK_SECONDS = 2.0
"""Clocks further apart than this make times in logs and of files useless."""

GIB = 2**30
_LEAST_DISK = GIB  # the adapter and its states, and logs; a run's plan says more
_LEAST_MEMORY_OF_A_RANK = GIB  # torch and DeepSpeed alone take half of it

_INSTALL = "run `make install` in the project's folder there, or install constraints.txt"
_INTERFACE = "set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) in .deepspeed_env"


@dataclass(frozen=True)
class Check:
    """A row of the table."""

    check: str
    host: str
    found: str
    verdict: Verdict
    todo: str = ""


@dataclass(frozen=True)
class Report:
    """A host and what its probe said; None where it said nothing."""

    host: Host
    reply: Reply

    @property
    def probe(self) -> dict[str, Any] | None:
        return self.reply.records[-1] if self.reply.records else None


Judged = tuple[str, Verdict, str]
Judge = Callable[[Report, dict[str, Any]], Judged]


def judge_probes(reports: Sequence[Report], port: int) -> list[Check]:
    """Every row but the all-reduce's. `port` is where the first rank will listen. A host with
    another copy of this project is judged no further: its words may have another meaning."""
    rows = [Check("answer", r.host.name, *_answer(r)) for r in reports]
    answered = [(r, r.probe) for r in reports if r.probe is not None]
    if not answered:
        return rows
    first = answered[0][1]
    for name in ("python", *COMPUTING):
        rows += _each(answered, name, _same_version(name, first))
    rows += _each(answered, "code", _same_code)
    alike = [(r, p) for r, p in answered if p.get("code") == code_hash()]
    if not alike:
        return rows
    first = alike[0][1]
    kinds = {bool(p["devices"]) for _, p in alike}
    rows += _each(alike, "devices", lambda r, p: _devices(r, p, len(kinds) > 1))
    rows += _each(alike, "memory", _memory)
    if len(reports) > 1:
        reference = _clock(alike[0][1])
        rows += _each(alike, "clock", lambda _, p: _skew(_clock(p) - reference))
        rows += _each(alike, "interface", _interface)
    for what in ("data", "model"):
        if what in first:
            rows += _each(alike, what, _same_content(what, first))
    if (what := "hub data") in first:
        rows += _each(alike, what, _in_cache(what, first))
    if alike[0][0] is reports[0]:  # the first rank listens and writes: the others need neither
        rows += _each(alike[:1], "port", lambda _, p: _port(p, port))
        rows += _each(alike[:1], "disk", _disk)
    return rows


def judge_all_reduce(
    reports: Sequence[Report], replies: Sequence[Reply], size: int, address: str
) -> list[Check]:
    """How far the ranks of each host came, and whether the sums are right. `size` is in bytes."""
    rows = []
    for report, reply in zip(reports, replies, strict=True):
        stages = Counter(str(record.get("stage")) for record in reply.records)
        error = next((str(r["error"]) for r in reply.records if "error" in r), reply.said)
        why = f": {printable(error)}" if error else ""
        wanted = report.host.slots
        if stages["joined"] < wanted:
            found = f"{stages['joined']} of {wanted} ranks joined {address}{why}"
            todo = f"open {address} to this host, or give --master_addr or --master_port"
            judged: Judged = (found, "FAIL", todo)
        elif stages["connected"] < wanted:
            todo = f"{_INTERFACE} to the interface that joins the hosts; open all ports between"
            judged = (f"joined, then no connection{why}", "FAIL", f"{todo} them")
        elif stages["reduced"] < wanted:
            todo = "start again with NCCL_DEBUG=INFO exported, which names the link"
            judged = (f"connected, then no sum{why}", "FAIL", todo)
        elif not all(r["right"] for r in reply.records if r.get("stage") == "reduced"):
            todo = "try NCCL_P2P_DISABLE=1; update the driver and NCCL"
            judged = ("a wrong sum", "FAIL", todo)
        else:
            judged = (f"{size / 2**20:.0f} MiB summed rightly", "ok", "")
        rows.append(Check("all-reduce", report.host.name, *judged))
    return rows


def _each(
    answered: Sequence[tuple[Report, dict[str, Any]]], check: str, judge: Judge
) -> list[Check]:
    return [Check(check, r.host.name, *judge(r, p)) for r, p in answered]


def _answer(report: Report) -> Judged:
    reply = report.reply
    if reply.records:
        return "answers", "ok", ""
    if reply.status is None:
        todo = "see that the host is up and not stuck; a slow one needs a larger --timeout"
        return f"no answer in time; {reply.said}".rstrip("; "), "FAIL", todo
    if reply.status == 255:
        todo = "`ssh HOST true` must work with no question: key, known_hosts, port, firewall"
        return f"ssh: {reply.said.removeprefix('ssh: ')}", "FAIL", todo
    todo = "every host needs the same commit in the same folder, and the same python"
    return f"status {reply.status}: {reply.said}", "FAIL", todo


def _same_version(name: str, first: dict[str, Any]) -> Judge:
    def judge(_: Report, probe: dict[str, Any]) -> Judged:
        version, wanted = (p.get("versions", {}).get(name) for p in (probe, first))
        if version is None:
            return "not installed", "FAIL", _INSTALL
        if version != wanted and wanted is not None:
            return f"{printable(version)}; the first host has {wanted}", "FAIL", _INSTALL
        return printable(version), "ok", ""

    return judge


def _same_code(_: Report, probe: dict[str, Any]) -> Judged:
    found, wanted = printable(str(probe.get("code"))), code_hash()
    if found != wanted:
        todo = "bring this project there to the same commit"
        return f"{found}; this machine has {wanted}", "FAIL", todo
    return found, "ok", ""


def _devices(report: Report, probe: dict[str, Any], mixed: bool) -> Judged:
    devices, slots = probe["devices"], report.host.slots
    if probe["devices_error"]:
        todo = "`nvidia-smi` and `python -c 'import torch'` must work there"
        return printable(probe["devices_error"]), "FAIL", todo
    if not devices:
        found = f"no GPU; {_count(slots, 'process')} on {_count(probe['cores'], 'core')}"
        todo = "some hosts have GPUs and this has none: take it out, or mend its driver"
        return (found, "FAIL", todo) if mixed else (found, "ok", "")
    names = ", ".join(f"{n} x {name}" for name, n in Counter(d["name"] for d in devices).items())
    if len(devices) < slots:
        return names, "FAIL", f"the hostfile asks for {slots}: set slots={len(devices)}"
    used = devices[:slots]
    fullest = min(range(slots), key=lambda i: used[i]["free"] / used[i]["total"])
    free, total = used[fullest]["free"], used[fullest]["total"]
    found = f"{names}; at least {min(d['free'] for d in used) / GIB:.1f} GiB free"
    if free < total / 2:
        return found, "FAIL", f"GPU {fullest} is in use: end what holds it (see nvidia-smi)"
    return found, "ok", ""


def _memory(report: Report, probe: dict[str, Any]) -> Judged:
    """Of the host; ranks without a GPU hold the model there."""
    free = probe["memory"]
    if free is None:
        return "unknown", "ok", ""
    model = probe.get("model", {}).get("half_bytes", 0) if not probe["devices"] else 0
    needed = report.host.slots * (_LEAST_MEMORY_OF_A_RANK + model)
    if free < needed:
        ranks = _count(report.host.slots, "process")
        todo = f"{ranks} take {needed / GIB:.1f} GiB: end what holds the memory, or lower slots"
        return f"{free / GIB:.1f} GiB free", "FAIL", todo
    return f"{free / GIB:.0f} GiB free", "ok", ""


def _clock(probe: dict[str, Any]) -> float:
    """Seconds by which the host's clock is ahead of ours, less the answer's way here."""
    return probe["clock"] - probe["received"]


def _skew(seconds: float) -> Judged:
    if abs(seconds) > CLOCK_SECONDS:
        return f"{seconds:+.1f} s from the first host", "FAIL", "run chrony or ntpd on every host"
    return f"within {CLOCK_SECONDS:.0f} s", "ok", ""


def _interface(_: Report, probe: dict[str, Any]) -> Judged:
    """Without a name, gloo takes the address that the host's own name resolves to."""
    asked, known = probe["gloo_interface"], [printable(name) for name in probe["interfaces"]]
    if asked is not None:
        found = f"GLOO_SOCKET_IFNAME={printable(asked)}"
        todo = f"that host has {', '.join(known)}: name one of them, the same on every host"
        return (found, "ok", "") if asked in known else (found, "FAIL", todo)
    means = probe["name_means"]
    if isinstance(means, dict):
        return "its own name does not resolve", "warn", _INTERFACE
    if ipaddress.ip_address(means).is_loopback:
        return f"its own name resolves to {means}", "warn", _INTERFACE
    return "its own name resolves", "ok", ""


def _same_content(what: str, first: dict[str, Any]) -> Judge:
    def judge(_: Report, probe: dict[str, Any]) -> Judged:
        here, wanted = _content(probe, what), first[what]
        if "error" in here:
            return printable(here["error"]), "FAIL", f"copy the {what} there, to the same path"
        found = f"sha256 {printable(here['sha256'], 12)}, {_bytes(here['bytes'])}"
        if here["sha256"] != wanted.get("sha256", here["sha256"]):
            return f"{found}; another {what}", "FAIL", "copy it anew from the first host"
        return found, "ok", ""

    return judge


def _content(probe: dict[str, Any], what: str) -> dict[str, Any]:
    """A name may be a file on one host and of the hub where there is no such file."""
    return probe.get(what, {"error": "no such file here"})


def _in_cache(what: str, first: dict[str, Any]) -> Judge:
    """Data sets of the hub, which is not asked here: training fetches those that are not there."""
    same = _same_content(what, first)

    def judge(report: Report, probe: dict[str, Any]) -> Judged:
        if "error" in (here := _content(probe, what)):
            return printable(here["error"]), "warn", "train fetches it: let this host reach the hub"
        return same(report, probe)

    return judge


def _port(probe: dict[str, Any], port: int) -> Judged:
    address = probe["address"]
    if probe["port"]:
        todo = "end what holds it (ss -ltnp), or give another --master_port here and to training"
        return f"{port}: {printable(probe['port'])}", "FAIL", todo
    if address is None:
        return "no address: `hostname -I` gives none", "FAIL", "give --master_addr"
    if not probe["address_is_here"]:
        found = f"{port} is free; {printable(address)} is no address of this host"
        return found, "warn", "right only where addresses are translated: give its own"
    return f"{printable(address)}:{port} is free", "ok", ""


def _disk(_: Report, probe: dict[str, Any]) -> Judged:
    disk = probe["disk"]
    found = f"{disk['free'] / GIB:.1f} GiB free in {printable(disk['folder'])}"
    if not disk["writable"]:
        return found, "FAIL", "it cannot be written to: give another --output_dir"
    if disk["free"] < _LEAST_DISK:
        return found, "FAIL", "free some space, or give another --output_dir"
    return found, "ok", ""


def _bytes(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:,} bytes"


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{number} {what}" + (plural if number != 1 else "")
