"""What a run says of its rows before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llama.data.prepare import Prepared, Reading, prepare
from llama.tokenizer.templates import load_template
from llama.train.start.inputs import Inputs
from tests.support.tokenizer_files import byte_tokenizer


def said(training: Prepared, held_out: Prepared | None) -> list[str]:
    inputs: Any = SimpleNamespace(training=training, held_out=held_out)
    return Inputs.reports(inputs)


def test_rows_on_both_sides_are_counted(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "t")
    template = load_template("chatml", tokenizer)

    def of(*texts: str) -> Prepared:
        path = tmp_path / "-".join(texts)
        path.write_text(json.dumps([{"text": text} for text in texts]))
        return prepare([path], template, tokenizer, Reading(64))

    training = of("a", "b", "c")
    assert len(said(training, None)) == len(said(training, of("d", "e"))) == 1
    assert said(training, of("d", "b"))[1:] == [
        "held-out: 1 example is among the training rows too, token for token."
    ]
    assert "2 examples are among" in said(training, of("a", "d", "b"))[1]
