"""lm-evaluation-harness, by its own loader of Hugging Face folders, says of an exported model what
`evaluate --task` says of the base with its adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.commands.evaluate.command import evaluate
from llama.commands.export.command import export
from llama.settings import EvaluateOptions, ExportOptions
from tests.bad_inputs.setting import write_adapter
from tests.support.skips import needs_harness
from tests.support.tiny_runs import read_lines, write_meta_model, write_model

pytestmark = [pytest.mark.long, needs_harness()]

CLOSE = 1e-4
"""Relative: merged weights in place of a side path, and sums in another order."""
NEW = 3
PLAIN = """\
{{- bos_token }}
{%- for message in messages %}
{{- ' ' if message.role == 'assistant' }}{{ message.content }}
{%- endfor %}"""
"""No chat: the text of docs/evaluate.md, as the harness has it without --apply_chat_template."""


@dataclass(frozen=True)
class Case:
    """A tokenizer, and how questions are written."""

    sentencepiece: bool
    template: str
    moved: str = ""
    """White space at the end of the prompt: the harness takes it for the beginning of a choice."""


CASES = {
    "bytes, chatml": Case(False, "chatml", "\n"),
    "bytes, alpaca": Case(False, "alpaca"),
    "bytes, plain": Case(False, "plain"),
    "pieces, alpaca": Case(True, "alpaca"),
    "pieces, plain": Case(True, "plain"),
}
ANSWERS = ["he", "her", "him and her"]
QUESTIONS = [
    {"question": f"Question: who is number {i * i}?\nAnswer:", "choices": ANSWERS, "answer": i % 3}
    for i in range(12)
]


def theirs(out: Path, chat: bool, rows: Path, written: bool) -> dict[str, Any]:
    """Shares and samples of a task made of a file here."""
    import lm_eval

    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
    }
    if written:
        stop = {"until": ["\ue000"], "do_sample": False, "max_gen_toks": NEW}
        measures = [{"metric": "exact_match"}]
        task |= {"output_type": "generate_until", "generation_kwargs": stop}
        task |= {"metric_list": measures, "doc_to_target": "{{answer}}"}
    else:
        measures = [{"metric": "acc"}, {"metric": "acc_norm"}]
        task |= {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
        task |= {"metric_list": measures}
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(out), "dtype": "float32"},
        tasks=[task],
        device="cpu",
        batch_size=1,
        apply_chat_template=chat,
        bootstrap_iters=0,
    )
    assert found is not None
    return {"shares": found["results"]["tiny"], "samples": found["samples"]["tiny"]}


@pytest.mark.parametrize("name", CASES)
def test_the_harness_says_the_same(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    for variable in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    case = CASES[name]
    model, adapter, out = (tmp_path / part for part in ("model", "adapter", "out"))
    write_meta_model(model) if case.sentencepiece else write_model(model)
    write_adapter(adapter, size=0.3)
    plain = tmp_path / "plain.jinja"
    plain.write_text(PLAIN)
    chat = case.template != "plain"
    template = case.template if chat else str(plain)
    options: dict[str, Any] = {"model": str(model), "adapter": adapter, "template": template}
    assert export(ExportOptions(format="hf", output_dir=out, **options)) == 0

    def ours(task: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        answers = tmp_path / f"{task.stem}.answers.jsonl"
        asked = EvaluateOptions(
            task=task, output=answers, precision="float32", max_new_tokens=NEW, json=True, **options
        )
        assert evaluate(asked) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["adapter"], read_lines(answers)

    def rows(stem: str, documents: list[dict[str, Any]]) -> Path:
        path = tmp_path / f"{stem}.jsonl"
        path.write_text("".join(json.dumps(document) + "\n" for document in documents))
        return path

    choices = rows("choices", QUESTIONS)
    (shares, answers), found = ours(choices), theirs(out, chat, choices, written=False)
    assert found["shares"]["acc,none"] == pytest.approx(shares["acc"]["value"])
    for answer, sample in zip(answers, found["samples"], strict=True):
        sums = torch.tensor([each[0][0] for each in sample["resps"]], dtype=torch.float64)
        own = torch.tensor(answer["log_likelihoods"], dtype=torch.float64)
        if case.moved:  # as much for each choice
            sums -= sums[0] - own[0]
        assert sums.tolist() == pytest.approx(own.tolist(), rel=CLOSE)
    if not case.moved:
        assert found["shares"]["acc_norm,none"] == pytest.approx(shares["acc_norm"]["value"])

    said = [row["answer"] for row in ours(rows("asked", written([""] * len(QUESTIONS))))[1]]
    # each program shows bytes that are no character in its own way
    whole = [i for i, t in enumerate(said) if t == t.strip() != "" and "\ufffd" not in t]
    kept = whole[::2] if case.sentencepiece else list(range(0, len(said), 2))
    exact = rows("exact", written([text if i in kept else "?" for i, text in enumerate(said)]))
    (shares, _), found = ours(exact), theirs(out, chat, exact, written=True)
    assert shares["exact_match"]["right"] == len(kept) > 0
    assert found["shares"]["exact_match,none"] == pytest.approx(len(kept) / len(QUESTIONS))


def written(answers: list[str]) -> list[dict[str, Any]]:
    """The questions, to be answered in words."""
    return [
        {"question": row["question"], "answer": answer or "?"}
        for row, answer in zip(QUESTIONS, answers, strict=True)
    ]
