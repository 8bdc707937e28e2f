"""`chat` as a person at a terminal has it, and as a script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llama.adapters import peft_format
from llama.commands.chat.layout import columns_of
from llama.data.rows import read_rows
from llama.settings import LoRAOptions
from tests.support.model_files import ROOT
from tests.support.pseudo_terminal import Terminal, at_terminal, pasted
from tests.support.speaking_model import write_speaking_model
from tests.support.tiny_runs import CONFIG, of_one_thread

pytestmark = pytest.mark.slow

PROMPT = r"\n>"
SAID = "wide 日🙂-"
CHAT = (ROOT / "launcher/chat.py", "--template", "alpaca", "--precision", "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_model(tmp_path_factory.mktemp("model"), SAID)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes nothing: what is looked at is where answers stand."""
    import torch

    folder = tmp_path_factory.mktemp("adapter")
    state = {}
    for layer in range(CONFIG.n_layers):
        rows, columns = CONFIG.linear_shape("wq")
        state[f"layers.{layer}.attention.wq.lora.a"] = torch.zeros(2, columns)
        state[f"layers.{layer}.attention.wq.lora.b"] = torch.zeros(rows, 2)
    options = LoRAOptions(rank=2, targets=("wq",))
    peft_format.save(folder, state, peft_format.AdapterConfig(options, "m"))
    return folder


def lines_of(answer: str) -> list[str]:
    return [line for line in answer.split("\n") if "wide" in line or "日" in line]


def saved(terminal: Terminal, path: Path) -> list[dict[str, object]]:
    terminal.type(f"/save {path}\r")
    terminal.until("row 1, of 2 messages")
    terminal.until(PROMPT)
    (row,) = map(json.loads, path.read_text().splitlines())
    return row["messages"]


def test_a_conversation_at_a_narrow_terminal(model: Path, tmp_path: Path) -> None:
    pasted_text = "one line\nand 日本 another"
    words = (*CHAT, "--model", model, "--max_new_tokens", "7000")
    with at_terminal(*words, columns=30) as terminal:
        terminal.until("/help lists the commands")
        terminal.until(PROMPT)
        terminal.type(pasted(pasted_text))
        terminal.until("another")
        terminal.type("\r")
        terminal.until("wide 日🙂-wide 日🙂-")
        terminal.type("\x03")
        stopped = terminal.until("stopped")
        terminal.until(PROMPT)
        terminal.type("\x03")
        terminal.until("Ctrl-D or /exit leaves")
        terminal.type("日🙂 typed\r")
        terminal.until("wide 日🙂-")
        terminal.type("\x03")
        terminal.until("stopped")
        terminal.until(PROMPT)
        turns = saved(terminal, tmp_path / "rows.jsonl")
        terminal.type("\x04")
        assert terminal.ended() == 0
    shown = lines_of(stopped.replace("^C", ""))
    assert shown and all(columns_of(line) <= 30 for line in shown)
    asked, answered = turns[::2], turns[1::2]
    assert [turn["content"] for turn in asked] == [pasted_text, "日🙂 typed"]
    # The first answer as it stands on the terminal, lines put together again.
    text = str(answered[0]["content"])
    assert text.startswith(SAID * 2) and len(text) < 7000
    assert text.replace(" ", "").endswith("".join(shown).replace(" ", "")[-20:])
    assert all(turn["train"] is False for turn in answered)
    (row,) = read_rows([tmp_path / "rows.jsonl"]).rows
    assert [turn["content"] for turn in row.messages] == [turn["content"] for turn in turns]


@pytest.mark.parametrize(("columns", "beside"), [(80, True), (40, False)])
def test_both_answers_are_seen(model: Path, adapter: Path, columns: int, beside: bool) -> None:
    words = ("--model", model, "--adapter", adapter, "--compare", "--max_new_tokens", "260")
    with at_terminal(*CHAT, *words, columns=columns) as terminal:
        terminal.until(PROMPT)
        terminal.type("go\r")
        terminal.until("base")
        answer = terminal.until(r"adapter: cut off at --max_new_tokens\s+260")
        terminal.type("/exit\r")
        assert terminal.ended() == 0
    rows = lines_of(answer)
    assert rows and all(columns_of(line) <= columns for line in rows)
    if beside:
        assert all(columns_of(row.partition("│")[0]) == 39 for row in rows)
        left, right = zip(*(row.split("│") for row in rows), strict=True)
        assert [line.strip() for line in left] == [line.strip() for line in right]
    else:
        first, second = answer.split("adapter:")[:2]
        assert lines_of(first) == lines_of(second)


def test_lines_of_a_pipe(model: Path, tmp_path: Path) -> None:
    lines = ["/system be brief", "hello", "", f"/save {tmp_path}/rows.jsonl", "/sav x", "again"]
    done = subprocess.run(
        [sys.executable, *CHAT, "--model", model, "--max_new_tokens", "26"],
        input="\n".join(lines),
        cwd=ROOT,
        env=of_one_thread(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == f"{SAID * 2}\n" * 2
    assert "error: line 5: unknown command /sav; did you mean /save?" in done.stderr
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert [turn["content"] for turn in row["messages"]] == ["be brief", "hello", SAID * 2]
