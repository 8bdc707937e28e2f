"""Names of other trainers: each answer is one that works here as it is written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama.errors import UserError
from llama.settings import GenerateOptions, TrainOptions, deepspeed_json
from llama.settings.options import parse
from llama.settings.options.answers import answer
from llama.settings.options.declare import declared
from llama.settings.options.elsewhere import ELSEWHERE
from llama.settings.options.kinds import Answer, ByValue, Here, Single
from llama.settings.options.shared import names_of_all_commands
from tests.support.model_files import ROOT

SHARED = {"adapter", "dtype", "output"}
"""Names that other commands of ours have too."""


def said_by(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(TrainOptions, ["--deepspeed", "ds_configs/lora.json", *argv], "train.py", "")
    return caught.value.problems


def single(row: Answer) -> Iterator[tuple[str | None, Single]]:
    """Each value of a row that is told apart (None: any other), with what is said of it."""
    if isinstance(row, ByValue):
        yield from row.values.items()
    rest = row.otherwise if isinstance(row, ByValue) else row
    if rest is not None:
        yield None, rest


ANSWERS = [(name, value, said) for name, row in ELSEWHERE.items() for value, said in single(row)]
COMMANDS = re.compile(r"--[a-z][a-z_.]*(?: [^-\s;)]\S*)?")


@pytest.mark.parametrize(("name", "value", "said"), ANSWERS)
def test_what_is_named_exists(name: str, value: str | None, said: Single) -> None:
    """Options, keys of the DeepSpeed JSON and files, of answers ready to type and of prose."""
    if isinstance(said, Here):
        shown = answer(name, said.example if value is None else value)
        assert shown is not None
        words = shlex.split(shown.partition(": here it is ")[2])
        options = parse(
            TrainOptions, ["--deepspeed", "ds_configs/lora.json", *words], "train.py", ""
        )
        for file in ("lora", "lora_bf16"):
            path = ROOT / "ds_configs" / f"{file}.json"
            config = deepspeed_json.load(path, options.override)
            assert deepspeed_json.check(config, file) == []
        return
    text = str(said)
    ours = {o.name for cls in (TrainOptions, GenerateOptions) for o in declared(cls)} | {"num_gpus"}
    for option in re.findall(r"--([a-z][a-z_.]*)", text):
        assert option in ours
    for key in re.findall(r"--override '?([a-z_.]+)=", text):
        assert key in deepspeed_json.keys.names()
    for file in re.findall(r"ds_configs/\w+\.json", text):
        assert (ROOT / file).is_file()


def test_both_meanings_of_a_batch_size_work_as_they_are_written() -> None:
    said = answer("batch_size", "128")
    assert said is not None
    for words in re.split(r"; ", said.replace("=N", "=128")):
        overrides = re.findall(r"--override (\S+)", words)
        config = deepspeed_json.load(ROOT / "ds_configs" / "lora.json", overrides)
        assert deepspeed_json.check(config, "F", data_parallel=2) == [] and overrides
    whole = ["train_batch_size=128", "gradient_accumulation_steps=auto"]
    config = deepspeed_json.load(ROOT / "ds_configs" / "lora.json", whole)
    assert deepspeed_json.batch_sizes(config, 2) == (1, 64)


def test_no_name_is_an_option_of_ours() -> None:
    """It would never be answered: the row is to go when the option comes."""
    assert ELSEWHERE.keys() & names_of_all_commands() == SHARED


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--lr 2e-4", "--lr 2e-4: here it is --override optimizer.params.lr=2e-4"),
        (
            "--dtype bfloat16",
            "--dtype bfloat16: here it is --override bf16.enabled=true "
            "--override fp16.enabled=false",
        ),
        ("--lr=2e-4", "--lr 2e-4: here it is --override optimizer.params.lr=2e-4"),
        ("--learning-rate", "--learning-rate: here it is --override optimizer.params.lr=VALUE"),
        (
            "--warmup_steps 0",
            "--warmup_steps 0: here it is --override scheduler.params.warmup_num_steps=1",
        ),
        ("--val_set_size 0", "so it is here already: no rows of --data are held out; leave it out"),
        (
            "--batch_size 128",
            "(as Axolotl and alpaca-lora mean it) are --override train_batch_size",
        ),
        (
            "--lr_scheduler_type linear",
            "linear: here it is --override scheduler.params.warmup_min_lr=0",
        ),
        ("--num_train_epochs 3.0", "--num_train_epochs 3.0: here it is --epochs 3"),
        ("--num_train_epochs 0.5", "--num_train_epochs 0.5: here it is --epochs N"),
        ("--use_rslora", "--use_rslora: here it is --lora.scale 'alpha/sqrt(r)'"),
        ("--packing no", "--packing no: here it is --pack false"),
        ("--packing", "--packing: so it is here already: --pack true is the default; leave it out"),
        ("--target_modules q_proj v_proj --pack", "here it is --lora.targets q_proj,v_proj"),
        ("--target_modules ['q_proj','v_proj']", "here it is --lora.targets q_proj,v_proj"),
        ("--dataset a;b", "--dataset a;b: here it is --data 'a;b'"),
        ("--lora-r 7", "--lora-r 7: here it is --lora.rank 7"),
        ("--fsdp_transformer_layer_cls_to_wrap X", "it is ZeRO here"),
    ],
)
def test_the_line(argv: str, line: str) -> None:
    (found,) = said_by(*argv.split())
    assert line in found


def test_a_secret_is_not_repeated() -> None:
    assert said_by("--hf_token", "hf_abc") == ["--hf_token: set HF_TOKEN in the environment"]


def test_a_value_of_any_length_gives_a_short_line() -> None:
    (found,) = said_by("--lr", "1" * 10_000)
    assert found == "--lr: here it is --override optimizer.params.lr=VALUE"


def test_dashes_are_underscores() -> None:
    options = parse(TrainOptions, ["--deepspeed=x", "--seq-len", "64"], "train.py", "")
    assert options.seq_len == 64
    assert said_by("--seq-len", "64", "--seq_len", "64") == ["--seq_len: given twice; keep one"]


AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
datasets:
  - path: rows.jsonl
    type: alpaca
output_dir: out
adapter: lora
sequence_len: 2048
sample_packing: true
lora_target_modules: [gate_proj, down_proj]
wandb_project:
wandb_entity:
num_epochs: 1
learning_rate: 0.0002
special_tokens:
  pad_token: x
  eos_token: y
"""


def test_a_file_of_axolotl_is_answered_in_one_go(tmp_path: Path) -> None:
    file = tmp_path / "axolotl.yaml"
    file.write_text(AXOLOTL)
    found = [line.removeprefix(f"{file}: ") for line in said_by("--config", str(file))]
    assert found == [
        "line 1: base_model: here it is model: NousResearch/Llama-3.2-1B",
        "line 4: datasets: here it is data: rows.jsonl",
        "line 8: sequence_len: here it is seq_len: 2048",
        "line 10: lora_target_modules: here it is lora.targets: gate_proj,down_proj",
        "line 13: num_epochs: here it is epochs: 1",
        "line 14: learning_rate: here it is in the list `override`: optimizer.params.lr=0.0002",
        "line 16: special_tokens: give a tokenizer that has it",
        "so it is here already; leave out load_in_8bit (line 2), adapter (line 7), "
        "sample_packing (line 9)",
        "empty; leave out wandb_project (line 11), wandb_entity (line 12)",
    ]


def test_one_file_serves_several_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("deepspeed: x\nseq_len: 64\nmax_new_tokens: 8\nadapter: out/adapter\n")
    options = parse(TrainOptions, ["--config", str(file)], "train.py", "")
    assert options.seq_len == 64
    assert capsys.readouterr().err == (
        f"from {file}, not of this command: max_new_tokens, adapter\n"
    )
    file.write_text("max_new_token: 8\n")
    (line,) = said_by("--config", str(file))
    assert "max_new_token: unknown option" in line


def test_another_trainer_s_name_within_a_deepspeed_json() -> None:
    config = deepspeed_json.load(ROOT / "ds_configs" / "lora.json", [])
    config["optimizer"]["params"]["learning_rate"] = 1e-4
    (line,) = deepspeed_json.check(config, "ds.json")
    assert line.endswith("learning_rate: unknown key; here it is optimizer.params.lr")
