"""docs/coming_from.md: what flags, files and rows of other trainers get here, by asking.

python -m tests.support.coming_from > docs/coming_from.md
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama.data.forms import form_of
from llama.data.rows import read_rows
from llama.errors import UserError
from llama.settings import TrainOptions
from llama.settings.options import parse
from tests.support.model_files import ROOT

PAGE = ROOT / "docs" / "coming_from.md"
FLAGS = {
    "transformers' Trainer, TRL and PEFT": (
        "--model_name_or_path meta-llama/Llama-3.2-1B;--dataset_name rows.jsonl;--output_dir out;"
        "--output-dir out;--learning_rate 2e-4;--num_train_epochs 3.0;--max_steps 100;"
        "--per_device_train_batch_size 4;--gradient_accumulation_steps 8;--bf16;--fp16;"
        "--gradient_checkpointing;--gradient_checkpointing false;--max_length 2048;"
        "--max_seq_length 2048;--packing;--lora_r 16;--lora_alpha 32;--lora_dropout 0.05;"
        "--lora_target_modules q_proj v_proj;--target_modules all-linear;--use_rslora;--use_dora;"
        "--modules_to_save embed_tokens;--load_in_4bit;--load_in_8bit;"
        "--warmup_steps 100;--warmup_ratio 0.03;"
        "--weight_decay 0.01;--max_grad_norm 0.3;--optim adamw_torch;--optim paged_adamw_8bit;"
        "--lr_scheduler_type cosine;--lr_scheduler_type linear;"
        "--save_steps 500;--save_total_limit 2;--eval_steps 50;"
        "--eval_strategy epoch;--logging_steps 1;--seed 42;--use_wandb;--wandb_project x;"
        "--push_to_hub;--hf_token TOKEN;--resume_from_checkpoint true;--deepspeed ds.json;"
        "--fsdp full_shard;"
        "--ddp_find_unused_parameters false;--attn_implementation sdpa;--torch_dtype bfloat16;"
        "--completion_only_loss true;--trust_remote_code"
    ),
    "Axolotl": (
        "--base_model meta-llama/Llama-3.2-1B;--sequence_len 2048;--micro_batch_size 2;"
        "--num_epochs 1;--sample_packing true;--flash_attention true;--train_on_inputs false;"
        "--lora_target_linear true;--val_set_size 0.1;--adapter qlora;--zero_stage 2;"
        "--context_parallel_size 2"
    ),
    "LLaMA-Factory": (
        "--stage sft;--finetuning_type lora;--lora_target all;--cutoff_len 2048;"
        "--template llama3;--dataset rows.jsonl;--lora_rank 8;"
        "--quantization_bit 4;--quantization_bit 8;"
        "--flash_attn fa2;--max_samples 1000;--plot_loss true;--val_size 0.1"
    ),
    "Unsloth and scripts": (
        "--lr 2e-4;--batch_size 4;--use_gradient_checkpointing unsloth;--output out;"
        "--lora_r 16;--max_seq_length 2048"
    ),
}
FILES = {
    "Axolotl": """\
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: rows.jsonl
    type: alpaca
dataset_prepared_path:
val_set_size: 0.1
output_dir: ./outputs/lora-out
adapter: qlora
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules: [gate_proj, down_proj, up_proj]
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
gradient_checkpointing: true
logging_steps: 1
flash_attention: true
warmup_ratio: 0.1
special_tokens:
  pad_token: "<|end_of_text|>"
""",
    "LLaMA-Factory": """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
""",
}
_CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
ROWS: dict[str, dict[str, Any]] = {
    "Alpaca": {"instruction": "Add.", "input": "2 and 2", "output": "4"},
    "Alpaca with history (LLaMA-Factory)": {
        "instruction": "And 3?",
        "input": "",
        "output": "9",
        "system": "Square.",
        "history": [["2?", "4"]],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    },
    "ShareGPT with system and tools (LLaMA-Factory)": {
        "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}],
        "system": "Add.",
        "tools": "[]",
    },
    "ChatML, messages (TRL, Axolotl's chat_template, OpenAI)": {"messages": _CHAT},
    "messages with `train` on a turn (Axolotl)": {
        "messages": [*_CHAT, *({**turn, "train": False} for turn in _CHAT)]
    },
    "messages with `training` on a turn (Axolotl)": {
        "messages": [_CHAT[0], {**_CHAT[1], "training": False}]
    },
    "prompt and completion (TRL)": {"prompt": "2 + 2?", "completion": "4"},
    "prompt and completion of messages (TRL)": {"prompt": _CHAT[:1], "completion": _CHAT[1:]},
    "prompt, chosen, rejected (TRL's DPO)": {"prompt": "2?", "chosen": "4", "rejected": "5"},
    "Dolly": {"instruction": "Add.", "context": "2 and 2", "response": "4", "category": "sum"},
    "text (TRL, Axolotl's completion, Unsloth)": {"text": "2 + 2 is 4."},
    "segments (Axolotl's input_output)": {"segments": [{"label": True, "text": "4"}]},
    "question and answer (GSM8K)": {"question": "2 + 2?", "answer": "4"},
    "instruction and input without output": {"instruction": "Add.", "input": "2 and 2"},
    "tokens (Axolotl's prepared)": {"input_ids": [1, 2], "labels": [1, 2]},
}
_HEAD = """\
# Coming from another trainer

Written by `python -m tests.support.coming_from`, which asks the parser of `train` and the reader of
rows; a test holds this page to what they say. A refused command ends with exit code 2, every
problem in one go, before anything loads. Dashes in an option's name are taken for underscores.
"""


def asked(*words: str) -> list[str]:
    """What `train` says of these words; empty where they are taken."""
    given = [] if "--deepspeed" in words else ["--deepspeed", "ds_configs/lora.json"]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parse(TrainOptions, [*given, *words], "train.py", "")
    except UserError as error:
        return error.problems
    return []


def read(row: dict[str, Any]) -> str:
    """What becomes of a file of one such row, `rows.json` in the folder that we are in."""
    Path("rows.json").write_text(json.dumps([row]))
    try:
        (found,) = read_rows([Path("rows.json")]).rows
    except UserError as error:
        return " ".join(error.problems)
    form = form_of(row)
    assert form is not None
    if found.text is not None:
        said = "all of it is learnt"
    else:
        answers = [m for m in found.messages if m["role"] == "assistant"]
        learnt = [m for m in answers if m.get("learn") is not False]
        said = f"{len(learnt)} of {len(answers)} answers learnt"
    unread = f"; not read: {', '.join(found.unread)}" if found.unread else ""
    return f"taken as {form.name}: {said}{unread}"


def page() -> str:
    """The page in Markdown."""
    with _in_a_folder():
        return "\n".join([_HEAD, *_flags(), *_files(), *_rows()])


def _flags() -> Iterator[str]:
    for trainer, line in FLAGS.items():
        yield f"## Flags of {trainer}\n\n| given | here |\n|---|---|"
        for given in line.split(";"):
            (said,) = asked(*given.split()) or ["taken as it is"]
            name = given.split()[0]
            said = said.removeprefix(given).removeprefix(name).lstrip(": ")
            said = said[said.index("here it is") :] if "here it is" in said else said
            yield f"| `{given}` | {_cell(said)} |"
        yield ""


def _files() -> Iterator[str]:
    for trainer, text in FILES.items():
        Path("run.yaml").write_text(text)
        lines = "\n".join(asked("--config", "run.yaml"))
        yield f"## A file of {trainer}'s as `--config run.yaml`\n\n```yaml\n{text}```\n"
        yield f"```\n{lines}\n```\n"


def _rows() -> Iterator[str]:
    yield "## Rows\n\n| form | row | here |\n|---|---|---|"
    for name, row in ROWS.items():
        yield f"| {name} | `{json.dumps(row)}` | {_cell(read(row))} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


@contextlib.contextmanager
def _in_a_folder() -> Iterator[None]:
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(home)


if __name__ == "__main__":
    sys.stdout.write(page())
