"""Held-out prompts answered before and after the training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama.assembly.limits import can_answer
from llama.assembly.use import answer
from llama.data.prepare import Prepared
from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.model.config import ModelConfig
from llama.model.transformer import Transformer
from llama.parallel.mesh import Mesh
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.chat import joined_content
from llama.tokenizer.templates import Template

COUNT = 4
MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Prompt:
    """One prompt, as text to show and as ids to answer."""

    text: str
    ids: list[int]


def choose_prompts(
    held_out: Prepared | None, template: Template, tokenizer: Tokenizer, config: ModelConfig
) -> list[Prompt]:
    """The first conversations of the held-out set that the model can answer, up to their first
    answer. (A row that was cut may go on past what the model has positions or tokens for.)"""
    prompts = []
    for row in held_out.rows if held_out else []:
        before_answer = []
        for message in row.messages:
            if message["role"] == "assistant":
                break
            before_answer.append(message)
        if before_answer and len(prompts) < COUNT:
            text = "\n\n".join(joined_content(message) for message in before_answer)
            ids = template.prompt(before_answer, tokenizer, row.tools)
            if can_answer(ids, MAX_NEW_TOKENS, config):
                prompts.append(Prompt(text, ids))
    return prompts


def answers(
    model: Transformer, tokenizer: Tokenizer, prompts: list[Prompt], mesh: Mesh
) -> list[str]:
    """What the model says now, greedily, by the main rank's choice of each token. Every rank must
    call it: all take part in each forward pass, where the model is spread over them."""
    return [
        answer(model, tokenizer, p.ids, MAX_NEW_TOKENS, agreed=mesh.of_main).strip()
        for p in prompts
    ]


def write_samples(path: Path, prompts: list[Prompt], before: list[str], after: list[str]) -> None:
    """`samples.jsonl`: prompt, before, after. Raises `OSError`; the file is then as it was."""
    rows = [
        {"prompt": prompt.text, "before": old, "after": new}
        for prompt, old, new in zip(prompts, before, after, strict=True)
    ]
    lines = [json_text(row, ensure_ascii=False) + "\n" for row in rows]
    write_file(path, "".join(lines).encode())


def as_text(prompts: list[Prompt], before: list[str], after: list[str]) -> str:
    """The same for a reader."""
    parts = [
        f"> {_quoted(prompt.text)}\n  before: {_indented(old)}\n  after:  {_indented(new)}"
        for prompt, old, new in zip(prompts, before, after, strict=True)
    ]
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return text.replace("\n", "\n          ")


def _quoted(text: str) -> str:
    return text.replace("\n", "\n> ")
