"""The Modelfile beside a GGUF file: read by Ollama's rules, its template rendered by Go and cut up
by llama.cpp, as Ollama does it, gives the ids that a run was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama.commands.export.command import export
from llama.settings import ExportOptions
from llama.tokenizer.base import Message
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from tests.support.llama_cpp import serving, tokens
from tests.support.ollama import commands, rendered
from tests.support.skips import needs_program
from tests.support.tiny_runs import write_meta_model, write_model

ASKED: list[list[Message]] = [
    [{"role": "user", "content": "Hi {{ there }}\nyou"}],
    [
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "because"},
        {"role": "user", "content": "And <b>now</b>?"},
    ],
]
SYSTEM: Message = {"role": "system", "content": 'Be "brief".\n\nAnd kind.'}
CONVERSATIONS = [*ASKED, *([SYSTEM, *each] for each in ASKED)]
OWN = "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}"
"""Of a kind that Go is not told."""


def modelfile(folder: Path, model: Path, template: str | Path) -> str:
    options = ExportOptions(
        model=str(model), format="gguf", output_dir=folder, template=str(template)
    )
    assert export(options) == 0
    return (folder / "Modelfile").read_text()


@pytest.mark.slow
@needs_program("go")
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_ollama_s_prompt_is_the_one_that_was_trained_on(kind: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_model(model) if kind == "bytes" else write_meta_model(model)
    names = {"bytes": ("chatml", "alpaca", "llama2"), "sentencepiece": ("alpaca", "llama2")}[kind]
    files = {name: commands(modelfile(tmp_path / name, model, name)) for name in names}
    for name, found in files.items():
        assert [key for key, _ in found[:2]] == ["from", "template"] and found[2:], name
        assert {key for key, _ in found[2:]} == {"stop"}, name
    cases = [(name, chat) for name in names for chat in CONVERSATIONS]
    texts = rendered([(files[name][1][1], chat) for name, chat in cases])
    tokenizer = load_tokenizer(model if kind == "bytes" else model / "tokenizer.model")
    with serving(tmp_path / names[0] / "model.gguf") as address:
        for (name, chat), text in zip(cases, texts, strict=True):
            expected = load_template(name, tokenizer).prompt(chat, tokenizer)
            assert tokens(address, text) == expected, (name, chat, text)


def test_a_modelfile_says_where_the_weights_are_and_what_ends_an_answer(tmp_path: Path) -> None:
    found = commands(modelfile(tmp_path / "out", write_model(tmp_path / "model"), "chatml"))
    assert found[0] == ("from", "./model.gguf") and (tmp_path / "out" / "model.gguf").exists()
    assert ("stop", "<|im_end|>") in found


def test_a_template_that_go_has_no_words_for_is_left_out_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not guessed; and where it writes no BOS, that llama.cpp does is told too."""
    own = tmp_path / "own.jinja"
    own.write_text(OWN)
    model = write_model(tmp_path / "model")
    found: Any = dict(commands(modelfile(tmp_path / "out", model, own)))
    assert "template" not in found
    said = capsys.readouterr().err
    assert "Modelfile: holds no TEMPLATE" in said
    assert load_tokenizer(model).text_begins
    assert "model.gguf: the chat template does not begin with BOS" in said
