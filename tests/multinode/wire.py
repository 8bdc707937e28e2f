"""Bytes that leave each host in an optimizer step, counted by the kernel on the interfaces, headers
and acknowledgements included. `python -m tests.multinode.wire`, as root, prints the tables that
docs/scaling.md holds."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.multinode.hosts import INTERFACE, Hosts, two_hosts
from tests.multinode.runs import on_both
from tests.multinode.wire_cases import (
    ADAPTER,
    CASES,
    EACH,
    LAYERS,
    MODEL,
    SHARINGS,
    TOKENS,
    Case,
    Layer,
    Shared,
)

Sent = tuple[int, int]
"""Bytes a step from the first host, and from the second."""
SLOW = "100mbit"
"""Of the link, each way, where a step over it is timed."""


def data_parallel(hosts: Hosts) -> dict[Case, Sent]:
    return {case: found["sent"] for case, found in _measured(hosts, "data", CASES)}


def tensor_parallel(hosts: Hosts) -> dict[Layer, Sent]:
    return {layer: found["sent"] for layer, found in _measured(hosts, "tensor", LAYERS)}


def base_shared(hosts: Hosts) -> dict[Shared, tuple[Sent, float]]:
    """With the seconds of a step."""
    found = _measured(hosts, "shared", SHARINGS, each=EACH)
    return {shared: (measure["sent"], measure["seconds"]) for shared, measure in found}


def _measured(hosts: Hosts, name: str, cases: Any, each: int = 1) -> Any:
    out = Path(tempfile.mkdtemp(dir=hosts.folder)) / "sent.json"
    for done in on_both(hosts, "-m", "tests.multinode.wire_ranks", name, "--out", out, each=each):
        assert done.returncode == 0, done.stdout + done.stderr
    return zip(cases, json.loads(out.read_text()), strict=True)


def slow_down(hosts: Hosts) -> bool:
    """Have each host send at most at `SLOW`; whether that could be done here. Nothing that waits is
    thrown away, which would be sent twice."""
    shape = ["tc", "qdisc", "add", "dev", INTERFACE, "root", "tbf", "rate", SLOW]
    shape += ["burst", "256kb", "limit", "64mb"]
    done = [subprocess.run(host.command(*shape), capture_output=True) for host in hosts.hosts]
    return not any(each.returncode for each in done)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, two_hosts(Path(folder)) as hosts:
        print(f"Data-parallel, an adapter of {ADAPTER:,} parameters:\n")
        print(
            "| ZeRO | precision | accumulation | least | expected | first sends | second | over |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for case, sent in data_parallel(hosts).items():
            what = f"{case.stage} | {case.precision} | {case.accumulation} | {case.least:,}"
            print(_row(what, case.expected, sent))
        print(f"\nTensor-parallel, a block of {TOKENS} tokens x {MODEL.dim}, in float32:\n")
        print("| checkpointing | expected | first sends | second | over |")
        print("|---|---|---|---|---|")
        for layer, sent in tensor_parallel(hosts).items():
            print(_row(layer.checkpointing, layer.expected, sent))
        print_shared(hosts)


def print_shared(hosts: Hosts) -> None:
    link = f"at {SLOW}" if slow_down(hosts) else "link not shaped: no tc here, or no tbf"
    print(f"\nA base shared by ranks, {EACH} on each host:\n")
    print(f"| `--shard_base` | expected | first sends | second | over | s a step, {link} |")
    print("|---|---|---|---|---|---|")
    for shared, (sent, seconds) in base_shared(hosts).items():
        print(f"{_row(shared.shard_base, shared.expected, sent)} {seconds:.2f} |")


def _row(what: str, expected: int, sent: Sent) -> str:
    counts = " | ".join(f"{count:,}" for count in (expected, *sent))
    return f"| {what} | {counts} | {max(sent) / expected:.3f} |"


if __name__ == "__main__":
    main()
