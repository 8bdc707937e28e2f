"""A tokenizer is known by what it does, and a template goes into a file and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.tokenizer.base import Message, Tokenizer
from llama.tokenizer.chat import ChatTemplate
from llama.tokenizer.identity import tokenizer_hash
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import AlpacaTemplate, load_template, written_template
from tests.support.tokenizer_files import (
    byte_description,
    gguf_of,
    write_gguf,
    write_sentencepiece,
    write_tokenizer_json,
)

CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "5"}],
    [
        {"role": "user", "content": "Add it's {{ all }}."},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "And 4?"},
        {"role": "assistant", "content": "9"},
    ],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "2"},
    ],
]


def test_one_vocabulary_has_one_hash_in_json_and_in_gguf(tmp_path: Path) -> None:
    in_json = load_tokenizer(write_tokenizer_json(tmp_path / "json"))
    path = write_gguf(tmp_path / "model.gguf", **gguf_of(byte_description()))
    assert tokenizer_hash(load_tokenizer(path)) == tokenizer_hash(in_json)


def test_other_tokens_or_another_end_have_another(tmp_path: Path) -> None:
    description = byte_description()
    plain = load_tokenizer(write_tokenizer_json(tmp_path / "plain"))
    vocab = description["model"]["vocab"]
    first, second = list(vocab)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    others = [
        load_tokenizer(write_tokenizer_json(tmp_path / "swapped", description)),
        load_tokenizer(write_sentencepiece(tmp_path / "tokenizer.model", 400)),
        load_tokenizer(write_tokenizer_json(tmp_path / "end", eos_token="<|im_end|>")),
    ]
    assert others[-1].eos_id != plain.eos_id
    assert len({tokenizer_hash(t) for t in [plain, *others]}) == 4


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """Without a BOS before texts, and with one."""
    if request.param == "bytes":
        return load_tokenizer(write_tokenizer_json(tmp_path))
    return load_tokenizer(write_sentencepiece(tmp_path / "tokenizer.model", 400))


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["plain", "turns", "system"])
def test_alpaca_as_jinja_asks_and_answers_as_it_does(
    messages: list[Message], tokenizer: Tokenizer
) -> None:
    alpaca = AlpacaTemplate()
    jinja = ChatTemplate("alpaca", alpaca.jinja(tokenizer))
    assert jinja.render(messages, tokenizer) == alpaca.render(messages, tokenizer)
    assert jinja.prompt(messages[:-1], tokenizer) == alpaca.prompt(messages[:-1], tokenizer)


def test_alpaca_as_jinja_writes_an_input_of_its_own(tokenizer: Tokenizer) -> None:
    """Where a message has one; ours gives templates the two as one text."""
    alpaca = AlpacaTemplate()
    turn: Message = {"role": "user", "content": "Add.", "input": "2 and 3"}
    jinja = ChatTemplate("alpaca", alpaca.jinja(tokenizer))
    text = jinja.text([dict(turn)], None, tokenizer).removeprefix("<s>")
    assert text == tokenizer.decode(alpaca.prompt([turn], tokenizer))
    assert "paired with an input" in text and "### Input:\n2 and 3\n\n### Response:" in text


def test_a_template_comes_back_from_its_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "chat_template.jinja"
    chat = ChatTemplate("mine.jinja", "{{ messages[0].content }} {{ messages[1].content }}")
    for template in (AlpacaTemplate(), chat, load_template("llama2", tokenizer)):
        file.write_text(template.jinja(tokenizer))
        again = written_template(file, template.name, tokenizer)
        assert again.name == template.name and type(again) is type(template)
        assert again.jinja(tokenizer) == template.jinja(tokenizer)


def test_a_file_that_was_changed_is_used_as_it_is(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "chat_template.jinja"
    file.write_text(AlpacaTemplate().jinja(tokenizer).replace("### Response:", "### Answer:"))
    again = written_template(file, "alpaca", tokenizer)
    prompt = again.prompt([{"role": "user", "content": "Add."}], tokenizer)
    assert tokenizer.decode(prompt).endswith("### Answer:")
