"""The commands that hosts are given, and how their answers are read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama.commands.doctor import reach
from llama.commands.doctor.probe import MARK
from llama.errors import UserError


def test_ssh_asks_no_question_and_takes_a_host_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(reach.SSH_ARGUMENTS, "-i 'my key' -o BatchMode=no -o ConnectTimeout=3")
    words = reach.ssh_command("-oProxyCommand=touch", 2222)
    assert words[:3] == ["ssh", "-o", "BatchMode=yes"]  # with ssh the first of two is taken
    assert words[-2:] == ["--", "-oProxyCommand=touch"]
    assert "my key" in words and words[words.index("-p") + 1] == "2222"
    assert words.index("ConnectTimeout=3") < words.index("ConnectTimeout=10")
    monkeypatch.setenv(reach.SSH_ARGUMENTS, "-i 'my key")
    with pytest.raises(UserError, match=reach.SSH_ARGUMENTS):
        reach.ssh_command("a", None)


def test_a_shell_hands_over_folder_and_arguments_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "a b; touch x 'y'").mkdir()
    monkeypatch.chdir(folder)
    code = "import json, os, sys; print(json.dumps([os.getcwd(), sys.argv[1:], os.environ['A']]))"
    words = ["$(touch x)", "`touch x`", "it's", '{"a": "b\\n"}', "; touch x"]
    line = reach.remote_command(["-c", code, *words], ["export A='1 2'"])
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [str(folder), words, "1 2"]
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_not_there_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "gone").mkdir()
    monkeypatch.chdir(folder)
    line = reach.remote_command(["-c", "print('started')"], [])
    folder.rmdir()
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "started" not in done.stdout


def exports(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, **more: str) -> list[str]:
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "work").mkdir(exist_ok=True)
    monkeypatch.chdir(folder / "work")
    (folder / "work" / ".deepspeed_env").write_text(text)
    return reach.exports(more, has_cuda=False)


def test_what_deepspeed_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth7\nA=home\n")
    given = exports(
        tmp_path,
        monkeypatch,
        "GLOO_SOCKET_IFNAME=eth0\nB=$A/lib dir\n",
        PYTHONPATH="/x y",
        PYTHONHASHSEED="1;2",
        NCCL_DEBUG="INFO",
        SECRET="no",
    )
    assert set(given) == {
        f"export PYTHONPATH='{tmp_path / 'work'}:/x y'",
        "export PYTHONHASHSEED='1;2'",
        'export GLOO_SOCKET_IFNAME="eth0"',  # the working folder's, over the home folder's
        'export A="home"',
        'export B="$A/lib dir"',
    }
    assert "export NCCL_DEBUG=INFO" in reach.exports({"NCCL_DEBUG": "INFO"}, has_cuda=True)
    shown = subprocess.run(
        ["sh", "-c", "; ".join([*given, 'echo "$B"'])], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "home/lib dir"


def test_an_environment_file_that_would_break_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed writes `# x=1` into its command as it stands: the rest would be a comment."""
    text = '# x=1\n\nA=$(touch x)\nB=`touch x`\nC="a"; touch x\nD-E=1\nF=1\n'
    with pytest.raises(UserError) as caught:
        exports(tmp_path, monkeypatch, text)
    lines = [problem.split(": ")[1] for problem in caught.value.problems]
    assert lines == [f"line {n}" for n in (1, 2, 3, 4, 5, 6)]


def test_marked_lines_are_told_from_a_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; print('Welcome!'); print(sys.argv[1] + '{\"a\": 1}');"
        "print(sys.argv[1] + 'oops'); sys.exit(3)"
    )
    before = time.time()
    (reply,) = reach.ask([[sys.executable, "-c", code, MARK]], 60)
    (record,) = reply.records
    assert record["a"] == 1 and before <= record["received"] <= time.time()
    assert reply.status == 3 and reply.said == f"{MARK}oops"


def test_what_a_terminal_would_act_on_is_left_out_of_what_was_said() -> None:
    code = "import sys; print('\\x1b[2Jbye', file=sys.stderr)"
    (reply,) = reach.ask([[sys.executable, "-c", code]], 60)
    assert reply.status == 0 and reply.said == "[2Jbye"


def test_a_host_that_hangs_is_cut_off_with_what_it_had_said() -> None:
    hangs = ["sh", "-c", f"echo '{MARK}{{}}'; sleep 600"]
    quick = ["sh", "-c", "echo done"]
    first, second = reach.ask([hangs, quick], 15)
    assert first.status is None and len(first.records) == 1
    assert second.status == 0 and second.said == "done"
