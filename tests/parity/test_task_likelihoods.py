"""The likelihood of each choice is transformers', and so is a written answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama.assembly.model import ready_model
from llama.commands.evaluate.respondent import ModelRespondent, Writer
from llama.model.decoding import own
from llama.tokenizer.base import Message
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from llama.weights.open_model import open_model
from tests.support.tiny_runs import write_model

CPU = torch.device("cpu")
ASKED = (Message(role="user", content="Which animal barks?"),)
CHOICES = ("a dog", "the cat", "日")
NEW = 12
TOLERANCE = 1e-5
"""Relative: float32 rounding of two orders of summation."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", ["chatml", "alpaca"])
def test_against_transformers(folder: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    template = load_template(name, tokenizer)
    model = ready_model(open_model(str(folder), CPU), None, "float32")
    respondent = ModelRespondent(model, Writer(template, tokenizer), CPU, NEW, 2, own)
    ours = respondent.log_likelihoods(ASKED, CHOICES)

    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = template.prompt(ASKED, tokenizer)
    for choice, found in zip(CHOICES, ours, strict=True):
        answer = tokenizer.encode(choice)  # of bytes: the same whatever stands before it
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = theirs(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(answer)[:, None]).sum()
        assert found == pytest.approx(float(expected), rel=TOLERANCE)

    (text, again) = respondent.answers([ASKED, ASKED])
    with torch.no_grad():
        written = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=sorted(tokenizer.stop_ids),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    kept = [token for token in written if token not in tokenizer.stop_ids]
    assert text == again == tokenizer.decode(kept)
