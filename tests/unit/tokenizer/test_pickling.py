"""Tokenizers and templates in another process: the same ids."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from llama.data.store.keys import canonical
from llama.tokenizer.base import Message, Tokenizer
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from tests.support.tokenizer_files import byte_tokenizer, smollm2, write_sentencepiece

TEXTS = ["", "a <s>b</s> <|im_start|>", "caf\u00e9  \n\U0001f600 1234", " lead"]
MESSAGES: list[Message] = [
    {"role": "user", "content": "q <|im_end|>"},
    {"role": "assistant", "content": "a </s>"},
]


@pytest.fixture(params=["bytes", "smollm2", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "bytes":
        return byte_tokenizer(tmp_path)
    if request.param == "smollm2":
        return smollm2()
    return load_tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))


def test_the_same_after_pickling(tokenizer: Tokenizer) -> None:
    template = load_template(None, tokenizer)
    other, others = pickle.loads(pickle.dumps((tokenizer, template)))
    for text in TEXTS:
        assert other.encode(text) == tokenizer.encode(text)
        assert other.encode(text, "text") == tokenizer.encode(text, "text")
        ids = tokenizer.encode(text)
        assert other.decode(ids) == tokenizer.decode(ids)
    assert others.write(MESSAGES, other) == template.write(MESSAGES, tokenizer)
    assert canonical([other, others]) == canonical([tokenizer, template])
