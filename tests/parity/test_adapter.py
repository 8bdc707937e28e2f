"""An adapter that a run wrote, loaded by PEFT onto transformers' model, gives our logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama.assembly.model import build_model, load_adapter
from llama.model.config import LINEARS, ModelConfig
from llama.model.documents import Documents
from llama.weights.open_model import open_model
from tests.support.closeness import SMALL_MODEL, assert_close, difference
from tests.support.tiny_runs import (
    CONFIG,
    deepspeed_json,
    launched,
    succeeded,
    write_json,
    write_model,
    write_rows,
)

LENGTH = 64
BIASED = replace(CONFIG, attention_bias=True, mlp_bias=True, tied_embedding=True)


def our_logits(folder: Path, adapter: Path | None, tokens: torch.Tensor) -> torch.Tensor:
    model = build_model(open_model(str(folder)), torch.float32, torch.device("cpu")).eval()
    if adapter is not None:
        load_adapter(model, adapter)
    with torch.no_grad():
        return model(tokens, torch.arange(len(tokens)), Documents((0, len(tokens))))


def their_logits(folder: Path, adapter: Path, tokens: torch.Tensor) -> torch.Tensor:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        return model(tokens.unsqueeze(0)).logits[0]


PROMPT = "<|im_start|>user\nhe<|im_end|>\n<|im_start|>assistant\n"


def prompt_of_transformers(folder: Path, adapter: Path) -> str:
    """By the model's own tokenizer and the adapter's template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "he"}],
        chat_template=(adapter / "chat_template.jinja").read_text(),
        add_generation_prompt=True,
        tokenize=False,
    )
    return text.removeprefix("<s>")


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize(
    ("config", "targets", "stage"),
    [(CONFIG, None, 0), (BIASED, LINEARS, 1)],
    ids=["default targets", "all seven"],
)
def test_a_run_s_adapter_gives_our_logits_in_peft(
    config: ModelConfig, targets: tuple[str, ...] | None, stage: int, tmp_path: Path
) -> None:
    folder, out = write_model(tmp_path / "model", config), tmp_path / "out"
    done = launched(
        "python",
        "train.py",
        *("--deepspeed", write_json(tmp_path / "ds.json", deepspeed_json(stage))),
        *("--model", folder, "--data", write_rows(tmp_path / "rows.json")),
        *("--template", "chatml", "--seq_len", "96", "--max_steps", "6"),
        *("--output_dir", out, "--json"),
        *(("--lora.targets", ",".join(targets)) if targets else ()),
    )
    succeeded(done)
    tokens = torch.randint(0, 261, (LENGTH,), generator=torch.Generator().manual_seed(0))
    ours, theirs = (f(folder, out / "adapter", tokens) for f in (our_logits, their_logits))
    assert difference(our_logits(folder, None, tokens), ours) > 0.01, "it has not trained"
    beside = {"training.json", "chat_template.jinja", "README.md"}
    assert beside < {path.name for path in (out / "adapter").iterdir()}, "PEFT read it with them"
    assert prompt_of_transformers(folder, out / "adapter") == PROMPT
    assert_close(ours, theirs, SMALL_MODEL)
    last = out / "checkpoints" / "step-6" / "adapter" / "adapter_model.safetensors"
    expected = load_file(out / "adapter" / "adapter_model.safetensors")
    assert len(expected) == 2 * config.n_layers * len(targets or ("wq", "wv"))
    for name, tensor in load_file(last).items():
        assert torch.equal(tensor, expected[name]), name
