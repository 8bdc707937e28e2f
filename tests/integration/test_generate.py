"""`generate` as processes: one alone, and two that share the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bad_inputs.setting import write_adapter
from tests.support.tiny_runs import launched, read_lines, succeeded, torchrun_module, write_model

pytestmark = pytest.mark.slow


def test_ranks_that_share_a_model_write_what_one_does(tmp_path: Path) -> None:
    """With an adapter whose factors are shared out too, and choices that are drawn."""
    write_model(tmp_path / "model")
    write_adapter(tmp_path / "adapter")
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("a", "b c", "d" * 40))
    )
    arguments = [
        *("--model", tmp_path / "model", "--adapter", tmp_path / "adapter"),
        *("--prompt_file", tmp_path / "prompts.jsonl", "--template", "chatml", "--batch", "2"),
        *("--precision", "float32", "--max_new_tokens", "8", "--temperature", "0.7"),
    ]
    arguments = [str(word) for word in arguments]
    alone = succeeded(launched("python", "generate.py", *arguments, "--json"))["answers"]
    out = tmp_path / "out.jsonl"
    shared = ("--tensor_parallel", "2", "--output", str(out))
    done = torchrun_module("llama.commands.generate", *arguments, *shared, ranks=2)
    assert done.returncode == 0, done.stderr
    assert read_lines(out) == alone
    assert [len(row["text"]) > 0 for row in alone] == [True] * 3
