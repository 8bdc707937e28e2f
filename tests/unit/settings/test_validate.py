"""The settings of the commands: the defaults hold, each wrong value is one line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from llama.commands.doctor.options import DoctorOptions
from llama.data.rows import bundled
from llama.errors import UserError
from llama.settings import (
    BenchmarkOptions,
    DataOptions,
    EvaluateOptions,
    GenerateOptions,
    LoRAOptions,
    PlanOptions,
    TrainOptions,
    VerifyOptions,
    check_benchmark,
    check_data,
    check_evaluate,
    check_generate,
    check_lora,
    check_plan,
    check_train,
    checked_plan,
    checked_train,
    idle_notes,
)
from llama.settings.options import parse
from llama.settings.options.declare import declared

REPOSITORY = Path(__file__).parents[3]
LORA_JSON = REPOSITORY / "ds_configs/lora.json"


def train(**changes: Any) -> TrainOptions:
    return replace(TrainOptions(deepspeed=LORA_JSON), **changes)


def test_the_defaults_are_sound():
    assert check_train(train(), world_size=1) == []
    assert check_generate(GenerateOptions(prompt=[""]), world_size=1) == []
    assert check_evaluate(EvaluateOptions(data=[LORA_JSON]), 1) == []


def test_every_option_has_help(capsys: pytest.CaptureFixture[str]):
    for cls in (TrainOptions, GenerateOptions, EvaluateOptions, DoctorOptions):
        with pytest.raises(SystemExit):
            parse(cls, ["--help"], "prog", "")
    assert "--lora.targets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": ""}, "--model: expected a path or a name"),
        ({"epochs": 0}, "--epochs: expected at least 1, found 0"),
        ({"max_steps": 0}, "--max_steps: expected at least 1, found 0"),
        ({"seq_len": 1}, "--seq_len: expected at least 2, found 1"),
        ({"seed": -1}, "--seed: expected from 0"),
        ({"seed": 2**63}, "--seed: expected from 0"),
        ({"tensor_parallel": 0}, "--tensor_parallel: expected at least 1, found 0"),
        ({"tensor_parallel": -2}, "--tensor_parallel: expected at least 1, found -2"),
        ({"tensor_parallel": 3}, "4 processes cannot be divided into groups of 3"),
        ({"tensor_parallel": 8}, "4 processes cannot be divided into groups of 8"),
        ({"data": [Path("/nowhere/x")]}, "--data: /nowhere/x does not exist"),
        ({"eval_data": [LORA_JSON, LORA_JSON]}, "lora.json is given twice"),
        ({"data": [Path("/dev/null")]}, "--data: /dev/null is not a regular file"),
        ({"tokenizer": Path("/nowhere/x")}, "--tokenizer: /nowhere/x does not exist"),
        ({"template": "/nowhere/t.jinja"}, "or a Jinja file, found '/nowhere/t.jinja'"),
        ({"template": "a\0b"}, "or a Jinja file"),
    ],
)
def test_train(changes: dict[str, Any], line: str):
    (found,) = check_train(train(**changes), world_size=4)
    assert line in found


@pytest.mark.parametrize(
    ("lora", "line"),
    [
        (LoRAOptions(rank=0), "--lora.rank: expected at least 1, found 0"),
        (LoRAOptions(alpha=0.0), "--lora.alpha: expected a finite number above 0"),
        (LoRAOptions(alpha=float("nan")), "--lora.alpha: expected a finite number above 0"),
        (LoRAOptions(alpha=float("inf")), "--lora.alpha: expected a finite number above 0"),
        (LoRAOptions(dropout=1.0), "--lora.dropout: expected from 0 to below 1, found 1.0"),
        (LoRAOptions(dropout=-0.1), "--lora.dropout: expected from 0 to below 1, found -0.1"),
        (LoRAOptions(dropout=float("nan")), "--lora.dropout: expected from 0"),
        (LoRAOptions(targets=()), "--lora.targets: expected one or more of wq,wk"),
        (LoRAOptions(targets=("wq", "wqq")), "found 'wqq'; did you mean wq?"),
        (LoRAOptions(targets=("wq", "wq")), "--lora.targets: wq is given twice"),
    ],
)
def test_lora(lora: LoRAOptions, line: str):
    (found,) = check_lora(lora)
    assert line in found
    assert found in check_train(train(lora=lora), world_size=1)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"eval_split": 0.1, "seed": -1}, "--seed: expected from 0 to below 2**63, found -1"),
        ({"seed": 2**63, "eval_split": 0.1}, "--seed: expected from 0"),
        ({"seq_len": 1}, "--seq_len: expected at least 2"),
    ],
)
def test_data(changes: dict[str, Any], line: str) -> None:
    (found,) = check_data(DataOptions(data=[bundled("heldout_40")], **changes))
    assert line in found


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"max_new_tokens": 0}, "--max_new_tokens: expected at least 1"),
        ({"temperature": -0.1}, "--temperature: expected a finite number of at least 0"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"temperature": float("inf")}, "--temperature"),
        ({"top_p": 0.0}, "--top_p: expected above 0 and at most 1, found 0.0"),
        ({"top_p": 1.1}, "--top_p: expected above 0 and at most 1, found 1.1"),
        ({"seed": -1}, "--seed"),
        ({"raw": True, "template": "alpaca"}, "--template: has no effect with --raw"),
        ({"raw": True, "system": "Be brief."}, "--system: has no effect with --raw"),
        ({"stream": True, "json": True}, "--stream: has no effect with --json"),
        ({"stream": True, "output": Path("new")}, "--stream: has no effect with --output"),
        ({"batch": 0}, "--batch: expected at least 1"),
        ({"prompt": []}, "--prompt: required"),
        ({"prompt": ["-", "-"]}, "standard input can be read once only"),
        ({"output": LORA_JSON}, "holds something already"),
        ({"output": REPOSITORY}, "is a folder"),
        ({"output": Path("/nowhere/x")}, "--output: /nowhere does not exist"),
        ({"tensor_parallel": 2}, "cannot be divided into groups of 2"),
        ({"adapter": Path("/nowhere/x")}, "--adapter: /nowhere/x does not exist"),
        ({"adapter": REPOSITORY}, "is not a PEFT folder"),
    ],
)
def test_generate(changes: dict[str, Any], line: str):
    (found,) = check_generate(replace(GenerateOptions(prompt=["x"]), **changes), world_size=1)
    assert line in found


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": [Path("/nowhere/x")]}, "--data: /nowhere/x does not exist"),
        ({"data": []}, "--data: expected one or more files, found none"),
        ({"micro_batch": 0}, "--micro_batch: expected at least 1"),
        ({"seq_len": 1}, "--seq_len: expected at least 2"),
        ({"adapter": Path("/nowhere/x")}, "--adapter"),
    ],
)
def test_evaluate(changes: dict[str, Any], line: str):
    (found,) = check_evaluate(replace(EvaluateOptions(data=[LORA_JSON]), **changes), 1)
    assert line in found


def test_columns_of_no_rows_have_no_effect():
    columns = (("prompt", "q"),)
    line = "--columns: has no effect without --data"
    assert check_benchmark(BenchmarkOptions(columns=columns), 1) == [line]
    assert check_plan(PlanOptions(gpu="l4", suggest=True, columns=columns)) == [line]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"batch": 16}, "--batch: has no effect without --suggest"),
        ({"suggest": True, "shard_base": "true", "gpus": 2}, "--shard_base: --suggest chooses"),
        ({"batch": 0, "suggest": True}, "--batch: expected at least 1"),
    ],
)
def test_what_a_plan_would_not_look_at_is_refused(given: dict[str, Any], line: str):
    (found,) = check_plan(PlanOptions(gpu="l4", **given))
    assert line in found


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"epochs": 9}, "--epochs: has no effect without --data or --rows"),
        ({"epochs": 9, "max_steps": 5}, "--epochs: has no effect without --data or --rows"),
        ({"pack": False, "rows": 9}, "--pack: has no effect without --data"),
        ({"overlong": "cut"}, "--overlong: has no effect without --data"),
        ({"suggest": True, "checkpointing": "none"}, "--checkpointing: has no effect: --suggest"),
        ({"suggest": True, "compile": "false"}, "--compile: has no effect: --suggest chooses it"),
        ({"suggest": True, "tensor_parallel": 2, "gpus": 2}, "--tensor_parallel: has no effect"),
    ],
)
def test_what_a_file_of_train_s_options_may_hold_is_told(given: dict[str, Any], line: str):
    """Such a file serves both commands, and is sound for one that trains on the bundled rows."""
    options = PlanOptions(gpu="l4", **given)
    assert check_plan(options) == []
    (found,) = idle_notes(options)
    assert line in found


def test_what_a_plan_looks_at_is_taken():
    of_nodes = PlanOptions(gpu="l4", nodes=2, network="25gbe", rows=9, epochs=9)
    assert check_plan(of_nodes) == []
    packed = PlanOptions(gpu="l4", data=[LORA_JSON], pack=False, overlong="cut", epochs=9)
    assert (
        check_plan(packed)
        == check_plan(replace(packed, data=[], rows=5, pack=True, overlong="drop"))
        == []
    )
    assert check_plan(PlanOptions(gpu="l4", suggest=True, batch=8)) == []


def test_a_data_set_of_the_hub_is_not_asked_for_before_the_options_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert check_train(train(data=[Path("org/rows"), Path("org/rows:test")]), 1) == []
    twice = check_train(train(data=[Path("org/rows"), Path("org/rows")]), 1)
    assert twice == ["--data: org/rows is given twice"]


def test_a_missing_file_names_its_nearest_sibling(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("")
    (found,) = check_train(train(data=[tmp_path / "trian.jsonl"]), world_size=1)
    assert found.endswith(f"does not exist; did you mean {tmp_path}/train.jsonl?")


def test_files_that_have_but_their_ending_in_common_are_not_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Names of another trainer's registry are no files here."""
    monkeypatch.chdir(tmp_path)
    for name in ("none.json", "scores.json"):
        Path(name).write_text("")
    wanted = (
        "does not exist; give a file or a folder of rows, or a data set of the Hugging Face hub"
    )
    for name in ("nofile.json", "identity"):
        (found,) = check_train(train(data=[Path(name)]), world_size=1)
        assert f"--data: {name} {wanted}" in found


def test_a_fifo_is_refused_without_being_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (found,) = check_train(train(data=[tmp_path / "pipe"]), world_size=1)
    assert "is not a regular file" in found


class TestOutput:
    def problems(self, folder: Path, resume: str = "auto") -> list[str]:
        return check_train(train(output_dir=folder, resume=resume), world_size=1)

    def test_new_nested_and_empty_folders_are_accepted_and_not_made(self, tmp_path: Path):
        assert self.problems(tmp_path) == []
        assert self.problems(tmp_path / "a/b") == []
        assert not (tmp_path / "a").exists()

    def test_another_run(self, tmp_path: Path):
        (tmp_path / "run.json").write_text("{}")
        (found,) = self.problems(tmp_path, resume="never")
        assert "already holds a run" in found
        assert self.problems(tmp_path) == []  # is continued

    def test_a_file_in_the_way(self, tmp_path: Path):
        (tmp_path / "a").write_text("")
        for folder in (tmp_path / "a", tmp_path / "a/b"):
            (found,) = self.problems(folder)
            assert f"{tmp_path}/a is a file" in found

    def test_not_writable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
        (found,) = self.problems(tmp_path / "a")
        assert found == f"--output_dir: {tmp_path} cannot be written to"


@pytest.mark.parametrize("method", get_args(get_type_hints(TrainOptions)["method"]))
def test_without_a_deepspeed_json_the_method_has_one_that_ships(method: str):
    file = REPOSITORY / f"ds_configs/{method}.json"
    given = train(deepspeed=file, method=method)
    assert checked_train(replace(given, deepspeed=None), 1) == checked_train(given, 1) != {}
    plan = PlanOptions(gpu="h100-80gb", deepspeed=file, method=method)
    assert checked_plan(replace(plan, deepspeed=None)) == checked_plan(plan) != {}


def test_overrides_of_a_file_stand_beside_those_of_the_command_line(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("override: [gradient_clipping=2, steps_per_print=3]\n")
    words = ["--config", str(file), "--override", "steps_per_print=7"]
    config = checked_train(parse(TrainOptions, words, "train.py", ""), 1)
    assert (config["gradient_clipping"], config["steps_per_print"]) == (2, 7)
    for cls in (TrainOptions, VerifyOptions, PlanOptions):
        assert {o.name for o in declared(cls) if o.by_key} == {"override"}


def test_problems_of_settings_and_of_the_deepspeed_json_come_together():
    assert checked_train(train(), 2)["gradient_clipping"] == 1.0
    with pytest.raises(UserError) as caught:
        checked_train(train(epochs=0, override=["optimizer.params.lr=-1"]), 1)
    assert len(caught.value.problems) == 2
    with pytest.raises(UserError) as caught:
        checked_train(train(epochs=0, deepspeed=Path("/nowhere/x.json")), 1)
    assert len(caught.value.problems) == 2
    batch = ["train_batch_size=5", "gradient_accumulation_steps=2"]
    with pytest.raises(UserError, match="4 data-parallel ranks"):
        checked_train(train(override=batch, tensor_parallel=2), 8)
