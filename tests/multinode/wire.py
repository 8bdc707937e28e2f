"""Bytes that leave each host in an optimizer step, counted by the kernel on the interfaces, headers
and acknowledgements included. `python -m tests.multinode.wire`, as root, prints the tables that
docs/scaling.md holds."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.multinode.hosts import Hosts, two_hosts
from tests.multinode.runs import on_both
from tests.multinode.wire_cases import ADAPTER, CASES, LAYERS, MODEL, TOKENS, Case, Layer

Sent = tuple[int, int]
"""Bytes a step from the first host, and from the second."""


def data_parallel(hosts: Hosts) -> dict[Case, Sent]:
    return dict(zip(CASES, _measured(hosts, 1), strict=True))


def tensor_parallel(hosts: Hosts) -> dict[Layer, Sent]:
    return dict(zip(LAYERS, _measured(hosts, 2), strict=True))


def _measured(hosts: Hosts, degree: int) -> list[Sent]:
    out = Path(tempfile.mkdtemp(dir=hosts.folder)) / "sent.json"
    module = ("-m", "tests.multinode.wire_ranks")
    for done in on_both(hosts, *module, "--tensor_parallel", str(degree), "--out", out):
        assert done.returncode == 0, done.stdout + done.stderr
    return [tuple(measure["sent"]) for measure in json.loads(out.read_text())]


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


def _row(what: str, expected: int, sent: Sent) -> str:
    counts = " | ".join(f"{count:,}" for count in (expected, *sent))
    return f"| {what} | {counts} | {max(sent) / expected:.3f} |"


if __name__ == "__main__":
    main()
