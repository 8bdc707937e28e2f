"""Hostfiles: what is read is what DeepSpeed reads, and what it should not take is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.errors import UserError
from llama.launch.hostfile import Host, check_address, read_hostfile

SOUND = """# the cluster
worker-1 slots=8
  10.0.0.2\tslots=4   # the old one

bob@node_3.example.org slots=16\r
"""
REFUSED = [
    ("-oProxyCommand=touch${IFS}HERE slots=1", "found '-oProxyCommand="),
    ("a;touch slots=1", "found 'a;touch'"),
    ("$(id) slots=1", "found '$(id)'"),
    ("a,b slots=1", "found 'a,b'"),
    ("^file slots=1", "found '^file'"),
    ("node[1-4] slots=1", "found 'node[1-4]'"),
    ("ssh:a slots=1", "found 'ssh:a'"),
    (".a slots=1", "found '.a'"),
    ("wörker slots=1", "found 'wörker'"),
    ("-l@a slots=1", "a user's name before the @, found '-l'"),
    ("a@b@c slots=1", "found 'a@b'"),
    ("@a slots=1", "found ''"),
    ("a slots=2x", "found '2x'"),
    ("a slots=0", "found '0'"),
    ("a slots=-1", "found '-1'"),
    ("a slots=", "found ''"),
    ("a slots=٣", "an integer from 1 to 9999"),
    ("a slots=123456", "found '123456'"),
    ("a slots = 2", "expected HOST slots=N, found 'slots'"),
    ("a slot=2", "found 'slot=2'; did you mean slots?"),
    ("a", "found 'a' alone"),
    ("a slots=2 max_slots=4", "found 'max_slots=4'"),
]


def write(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_bytes(text.encode())
    return path


def refusal(path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_hostfile(path)
    return caught.value.problems


def test_a_sound_file_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    path = write(tmp_path, SOUND)
    hosts = read_hostfile(path)
    assert hosts == [Host("worker-1", 8), Host("10.0.0.2", 4), Host("bob@node_3.example.org", 16)]
    theirs = fetch_hostfile(str(path))
    assert theirs is not None
    assert list(theirs.items()) == [(host.name, host.slots) for host in hosts]


def test_deepspeed_takes_what_is_refused_here(tmp_path: Path) -> None:
    """Why this reader is there, and what docs/clusters.md says. A version that refuses them needs
    neither."""
    from deepspeed.launcher.runner import fetch_hostfile

    lines = ["-oProxyCommand=x slots=1", "a slots=2x", "b slots=0", "c slots=3 max_slots=4"]
    theirs = fetch_hostfile(str(write(tmp_path, "\n".join(lines))))
    assert theirs == {"-oProxyCommand=x": 1, "a": 2, "b": 0, "c": 3}


@pytest.mark.parametrize(("line", "found"), REFUSED, ids=[line for line, _ in REFUSED])
def test_a_line_that_is_refused(line: str, found: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"# hosts\n{line}\n")
    (problem,) = refusal(path)
    assert problem.startswith(f"{path}: line 2: ") and found in problem
    assert "\n" not in problem


def test_every_problem_at_once_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a slots=0\nb slots=1\n\nB slots=2\nx@b slots=1\n-c slots=1\n")
    problems = refusal(path)
    assert [p.removeprefix(f"{path}: ").partition(":")[0] for p in problems] == [
        "line 1",
        "line 4",
        "line 5",
        "line 6",
    ]
    assert "b is on line 2 already" in problems[1] and "b is on line 2 already" in problems[2]


def test_what_holds_no_host_at_all(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")[0]
    assert "is a folder" in refusal(tmp_path)[0]
    for text in ("", "\n\n", "# nobody\n"):
        assert "names no host" in refusal(write(tmp_path, text))[0]


def test_lines_end_where_deepspeed_ends_them(tmp_path: Path) -> None:
    """It would read on past a form feed in a comment, and keep a byte order mark in a name."""
    assert "names no host" in refusal(write(tmp_path, "# a\x0cb slots=1\n"))[0]
    assert "byte order mark" in refusal(write(tmp_path, "\ufeffa slots=1\n"))[0]


@pytest.mark.parametrize("address", ["10.0.0.1", "node-1", "fe80::1", "::ffff:10.0.0.1"])
def test_addresses(address: str) -> None:
    assert check_address(address) is None


@pytest.mark.parametrize("address", ["", "-a", "a b", "a;b", "[::1]", "a:b$"])
def test_what_is_no_address(address: str) -> None:
    problem = check_address(address)
    assert problem is not None and repr(address) in problem
