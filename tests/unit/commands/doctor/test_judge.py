"""Verdicts on hosts that are described here, and the table that shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama.commands.doctor.judge import GIB, Check, Report, judge_all_reduce, judge_probes
from llama.commands.doctor.probe import code_hash
from llama.commands.doctor.probe import probe as looked_at
from llama.commands.doctor.reach import Reply
from llama.commands.doctor.table import table
from llama.launch.hostfile import Host

GPU = {"name": "GPU-80", "free": 79 * GIB, "total": 80 * GIB}


def probe(**changes: Any) -> dict[str, Any]:
    """A sound host's."""
    versions = {"python": "3.11.7", "torch": "2.13.0", "deepspeed": "0.19.8", "fairscale": "0.4.13"}
    sound = {
        "boot": "a",
        "versions": versions | changes.pop("versions", {}),
        "code": code_hash(),
        "cores": 16,
        "memory": 100 * GIB,
        "address": "10.0.0.1",
        "address_is_here": True,
        "name_means": "10.0.0.1",
        "interfaces": ["lo", "eth0"],
        "gloo_interface": None,
        "port": None,
        "disk": {"folder": "/w/runs", "free": 50 * GIB, "writable": True},
        "devices": [GPU, GPU],
        "devices_error": None,
        "data": {"sha256": "d" * 64, "bytes": 3},
        "model": {"sha256": "e" * 64, "bytes": 14 * GIB, "half_bytes": 14 * GIB},
        "clock": 1000.0,
        "received": 1000.02,
    }
    return sound | changes


def report(name: str, found: dict[str, Any] | None, status: int | None = 0, said: str = "") -> Any:
    return Report(Host(name, 2), Reply([] if found is None else [found], status, said))


def judged(*probes: dict[str, Any] | None, **reply: Any) -> list[Check]:
    reports = [
        report(f"h{i}", found, **(reply if found is None else {})) for i, found in enumerate(probes)
    ]
    return judge_probes(reports, 29500)


def bad(rows: list[Check]) -> list[Check]:
    return [row for row in rows if row.verdict != "ok"]


def test_sound_hosts() -> None:
    rows = judged(probe(), probe())
    assert bad(rows) == []
    assert {row.check for row in rows} == {
        *("answer", "python", "torch", "deepspeed", "fairscale", "code", "devices", "memory"),
        *("clock", "interface", "data", "model", "port", "disk"),
    }


def test_data_of_the_hub_is_no_file_that_is_to_be_copied() -> None:
    cached, other = ({"sha256": letter * 64, "bytes": 3} for letter in "ab")
    rows = judged(
        *(probe(**{"hub data": found}) for found in (cached, {"error": "org/rows"}, other))
    )
    found = [(row.verdict, row.found) for row in rows if row.check == "hub data"]
    assert [verdict for verdict, _ in found] == ["ok", "warn", "FAIL"]
    here_alone = judged(probe(), {k: v for k, v in probe().items() if k != "data"})
    assert [row.verdict for row in here_alone if row.check == "data"] == ["ok", "FAIL"]
    assert found[1][1] == "org/rows" and "another hub data" in found[2][1]


def test_data_is_looked_at_as_train_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llama.files.shards.fetched", lambda name: (Path(f"{name.repo}.json"),))
    Path("rows.json").write_text("[]")
    asked = {"port": 0, "output_dir": ".", "master_addr": None, "model": None}
    found = looked_at(asked | {"data": ["rows.json:2", "org/rows:train"]})
    assert found["data"]["bytes"] == 2
    assert "org/rows.json" in found["hub data"]["error"]
    assert not {"data", "hub data"} & looked_at(asked | {"data": []}).keys()


FAULTS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"versions": {"torch": "2.12.1"}}, "torch", "2.12.1; the first host has 2.13.0", "install"),
    ({"versions": {"fairscale": None}}, "fairscale", "not installed", "install"),
    ({"clock": 1003.0}, "clock", "+3.0 s", "chrony"),
    ({"clock": 990.0}, "clock", "-10.0 s", "chrony"),
    ({"data": {"sha256": "f" * 64, "bytes": 3}}, "data", "sha256 ffffffffffff", "copy"),
    ({"data": {"error": "No such file"}}, "data", "No such file", "copy"),
    ({"model": {"sha256": "f" * 64, "bytes": GIB}}, "model", "another model", "copy"),
    ({"devices": [GPU]}, "devices", "1 x GPU-80", "slots=1"),
    ({"devices": [GPU, GPU | {"free": 3 * GIB}]}, "devices", "3.0 GiB free", "GPU 1 is in use"),
    ({"devices": []}, "devices", "no GPU", "this has none"),
    ({"devices": [], "devices_error": "no driver"}, "devices", "no driver", "nvidia-smi"),
    ({"memory": GIB}, "memory", "1.0 GiB free", "take 2.0 GiB"),
    ({"gloo_interface": "ib0"}, "interface", "=ib0", "has lo, eth0"),
]


@pytest.mark.parametrize(("fault", "check", "found", "todo"), FAULTS)
def test_one_host_that_differs(fault: dict[str, Any], check: str, found: str, todo: str) -> None:
    rows = bad(judged(probe(), probe(**fault)))
    assert rows, "not noticed"
    row = next(row for row in rows if row.check == check)
    assert (row.host, row.verdict) == ("h1", "FAIL")
    assert found in row.found and todo in row.todo


def test_a_model_held_in_main_memory_counts() -> None:
    """Two ranks with no GPU hold 14 GiB each."""
    cpu = {"devices": [], "memory": 20 * GIB}
    (row,) = bad(judged(probe(**cpu)))
    assert (row.check, row.verdict) == ("memory", "FAIL") and "30.0 GiB" in row.todo
    assert bad(judged(probe(devices=[], memory=40 * GIB))) == []


def test_a_host_with_another_copy_of_the_project_is_judged_no_further() -> None:
    """Its probe may say other things; that must not be a traceback."""
    rows = judged({"code": "0ld", "received": 0.0}, probe())
    assert ("code", "h0", "FAIL") in [(row.check, row.host, row.verdict) for row in rows]
    assert [row.host for row in rows if row.check == "devices"] == ["h1"]
    assert bad([row for row in rows if row.host == "h1" and row.check != "code"]) == []


@pytest.mark.parametrize(
    ("status", "said", "found", "todo"),
    [
        (255, "ssh: Connection refused", "ssh: Connection refused", "ssh HOST true"),
        (None, "", "no answer in time", "--timeout"),
        (1, "cd: no such folder", "status 1: cd: no such folder", "same commit in the same folder"),
    ],
)
def test_a_host_that_does_not_answer(status: int | None, said: str, found: str, todo: str) -> None:
    (row,) = bad(judged(probe(), None, status=status, said=said))
    assert (row.check, row.host, row.verdict, row.found) == ("answer", "h1", "FAIL", found)
    assert todo in row.todo


def test_no_host_answers() -> None:
    rows = judged(None, None, status=255, said="")
    assert [row.verdict for row in rows] == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("fault", "todo"),
    [
        ({"port": "in use"}, "--master_port"),
        ({"address": None}, "--master_addr"),
        ({"disk": {"folder": "/w", "free": 1000, "writable": True}}, "free some space"),
        ({"disk": {"folder": "/w", "free": GIB * 9, "writable": False}}, "--output_dir"),
    ],
)
def test_the_first_host_listens_and_writes_and_no_other(fault: dict[str, Any], todo: str) -> None:
    (row,) = bad(judged(probe(**fault), probe()))
    assert (row.host, row.verdict) == ("h0", "FAIL") and todo in row.todo
    assert bad(judged(probe(), probe(**fault))) == []


def test_a_master_address_that_is_not_the_first_hosts() -> None:
    (row,) = bad(judged(probe(address="10.0.0.9", address_is_here=False), probe()))
    assert (row.check, row.host, row.verdict) == ("port", "h0", "warn") and "10.0.0.9" in row.found


def test_a_name_that_means_loopback_is_a_warning_among_several_hosts() -> None:
    (row,) = bad(judged(probe(name_means="127.0.1.1"), probe()))
    assert (row.check, row.verdict) == ("interface", "warn") and "GLOO_SOCKET_IFNAME" in row.todo
    assert bad(judged(probe(name_means="127.0.1.1"))) == []
    assert bad(judged(probe(name_means="127.0.1.1", gloo_interface="eth0"), probe())) == []


def test_what_a_host_says_cannot_move_the_cursor() -> None:
    rows = judged(probe(), probe(data={"error": "no\x1b[2J file"}))
    assert "\x1b" not in table(rows)


Records = Callable[[int], list[dict[str, Any]]]
JOINED = {"stage": "joined"}
CONNECTED = {"stage": "connected"}
RIGHT = {"stage": "reduced", "right": True, "seconds": 0.1}


@pytest.mark.parametrize(
    ("stages", "found", "todo"),
    [
        ([{"error": "timed out"}], "0 of 2 ranks joined 10.0.0.1:29500: timed out", "open"),
        ([JOINED], "1 of 2 ranks joined", "open"),
        ([JOINED, JOINED, {"error": "refused"}], "no connection: refused", "GLOO_SOCKET_IFNAME"),
        ([JOINED] * 2 + [CONNECTED] * 2 + [RIGHT], "no sum", "NCCL_DEBUG=INFO"),
        (
            [JOINED] * 2 + [CONNECTED] * 2 + [RIGHT, RIGHT | {"right": False}],
            "a wrong sum",
            "NCCL_P2P_DISABLE=1",
        ),
    ],
)
def test_where_an_all_reduce_stops(stages: list[dict[str, Any]], found: str, todo: str) -> None:
    well = Reply([JOINED] * 2 + [CONNECTED] * 2 + [RIGHT] * 2, 0, "")
    reports = [report("h0", probe()), report("h1", probe())]
    replies = [well, Reply([{"rank": 2, **stage} for stage in stages], 1, "")]
    first, second = judge_all_reduce(reports, replies, 2**20, "10.0.0.1:29500")
    assert (first.host, first.verdict, first.found) == ("h0", "ok", "1 MiB summed rightly")
    assert (second.host, second.verdict) == ("h1", "FAIL")
    assert found in second.found and todo in second.todo


def test_the_table_joins_hosts_that_are_alike_and_fits() -> None:
    hosts = [probe() for _ in range(64)]
    hosts[7] = probe(versions={"torch": "2.12.1+" + "x" * 90}, clock=1010.0)
    hosts[9] = probe(data={"error": "cannot be read: " + "path/" * 40})
    lines = table(judged(*hosts)).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert len(lines) < 40
    python = next(line for line in lines if line.startswith("python"))
    assert python.split() == ["python", "all", "64", "3.11.7", "ok"]
    (clock,) = [line for line in lines if line.startswith("clock") and "FAIL" in line]
    assert clock.split()[:3] == ["clock", "h7", "+10.0"]
    (others,) = [line for line in lines if line.startswith("torch") and "ok" in line]
    assert others.split()[1:3] == ["63", "others"]
