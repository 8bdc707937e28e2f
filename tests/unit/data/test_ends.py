"""Ends of answers that the template writes and the tokenizer does not know as ends."""

from __future__ import annotations

import json
from pathlib import Path

from llama.data.prepare import Prepared, Reading, prepare
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from tests.support.tokenizer_files import byte_description

SOURCE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|end|>\n"
    "{% endfor %}"
)


def prepared(folder: Path) -> tuple[Prepared, Tokenizer]:
    tokenizer = load_tokenizer(folder)
    template = load_template(str(folder / "t.jinja"), tokenizer)
    return prepare([folder / "rows.json"], template, tokenizer, Reading(128)), tokenizer


def test_an_end_that_is_no_end_to_the_tokenizer_is_told(tmp_path: Path) -> None:
    """Until its id is listed: then it is learnt after every answer, and generation stops there."""
    description = byte_description()
    last = len(description["model"]["vocab"])
    description["model"]["vocab"]["<|end|>"] = last
    description["added_tokens"].append(
        {**description["added_tokens"][0], "id": last, "content": "<|end|>"}
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "t.jinja").write_text(SOURCE)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": turns}, {"messages": turns * 2}]))
    made, tokenizer = prepared(tmp_path)
    assert [example.labels.count(last) for example in made.examples] == [0, 0]
    said = made.report.text()
    assert '; 2 rows have "<|end|>" after answers by the template, where the last is taught' in said
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, last]}))
    made, tokenizer = prepared(tmp_path)
    assert last in tokenizer.stop_ids
    assert [example.labels.count(last) for example in made.examples] == [1, 2]
    assert "by the template" not in made.report.text()
