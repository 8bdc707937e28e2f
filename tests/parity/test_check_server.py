"""`export --check_server` asks llama.cpp's own server, with the adapter, without it, with another,
and with the adapter under another template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.commands.export.command import export
from llama.settings import ExportOptions
from tests.bad_inputs.setting import write_adapter
from tests.support.llama_cpp import serving
from tests.support.model_files import ROOT, random_state, transformers_model
from tests.support.pages import shell_lines
from tests.support.tiny_runs import CONFIG, of_one_thread
from tests.support.tokenizer_files import byte_tokenizer, write_tokenizer_json

pytestmark = pytest.mark.slow

ALL_LINEAR = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
PROMPTS = "What is rain?\nName a colour.\nHow old is the sea?\nWhy do cats sleep?\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_lettered_model(folder / "model")
    write_adapter(folder / "adapter", targets=ALL_LINEAR, size=0.1)
    write_adapter(folder / "another", targets=ALL_LINEAR, size=0.1, rank=3)
    (folder / "prompts.txt").write_text(PROMPTS)
    return folder


def write_lettered_model(folder: Path) -> None:
    """A random model that writes small letters and ends, of each of which the tokenizer has one
    token: its text is read back as the tokens that it wrote."""
    state = random_state(CONFIG)
    letters = byte_tokenizer(folder).encode("abcdefghijklmnopqrstuvwxyz")
    others = torch.ones(CONFIG.vocab_size, dtype=torch.bool)
    others[letters] = False
    state["output.weight"][others] = 0.0
    transformers_model(CONFIG, state.__getitem__).save_pretrained(folder)
    write_tokenizer_json(folder)


def write(made: Path, out: Path, format_: Any, **more: Any) -> Path:
    options = {"model": str(made / "model"), "template": "chatml"} | more
    assert export(ExportOptions(format=format_, output_dir=out, **options)) == 0
    return next(out.glob("*.gguf"))


def asked(made: Path, address: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    capsys.readouterr()
    status = export(
        ExportOptions(
            model=str(made / "model"),
            adapter=made / "adapter",
            template="chatml",
            check_server=address,
            prompt_file=made / "prompts.txt",
            json=True,
        )
    )
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("how", ["merged", "beside", "q8_0", "base", "another", "other template"])
def test_a_server_s_answers_tell_what_it_serves(
    how: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {
        "merged": {"adapter": made / "adapter", "dtype": "float16"},
        "q8_0": {"adapter": made / "adapter", "quantize": "q8_0"},
        "another": {"adapter": made / "another"},
        "other template": {"adapter": made / "adapter", "template": "alpaca"},
    }
    file = write(made, tmp_path / "gguf", "gguf", **given.get(how, {}))
    lora = None
    if how == "beside":
        lora = write(made, tmp_path / "lora", "gguf-lora", adapter=made / "adapter", template=None)
    with serving(file, lora) as address:
        status, found = asked(made, address, capsys)
    which = {"base": "base", "another": "neither", "other template": "neither"}
    assert found["answers"] == which.get(how, "adapter")
    assert status == (0 if found["answers"] == "adapter" else 1)
    assert [way["way"] for way in found["ways"]] == ["chat/completions", "completions"]
    tokens = found["ways"][1]["which"]
    assert tokens == ("adapter" if how == "other template" else found["answers"])
    assert ("laid out otherwise" in found["verdict"]) == (how == "other template")


def test_the_guide_s_command(made: Path, tmp_path: Path) -> None:
    """As a user types it, but for the address and where the prompts are."""
    (line,) = (s for s in shell_lines(ROOT / "docs/export.md") if "--check_server" in s)
    file = write(made, tmp_path / "gguf", "gguf", adapter=made / "adapter")
    with serving(file) as address:
        words = [word.replace("http://127.0.0.1:8080", address) for word in line.split()]
        words[words.index("RUN")] = str(made / "adapter")
        more = ["--model", str(made / "model"), "--template", "chatml"]
        more += ["--prompt_file", str(made / "prompts.txt")]
        done = subprocess.run(
            [sys.executable, *words[1:], *more],
            cwd=ROOT,
            env=of_one_thread(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "The adapter answers."
    assert done.stdout.splitlines()[1].split()[0] == "/v1/chat/completions"
