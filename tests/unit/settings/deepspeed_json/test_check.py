"""The DeepSpeed JSON: strict reading, each wrong key or value one line, and what a run is given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llama.errors import UserError
from llama.settings.deepspeed_json import check, keys, load, located

FOLDER = Path(__file__).parents[4] / "ds_configs"
LORA = FOLDER / "lora.json"
RATE = "optimizer.params.lr=1e-3"
FILES = sorted(FOLDER.glob("*.json"))


def problems(*overrides: str, data_parallel: int | None = 1, file: Path = LORA) -> list[str]:
    has_rate = any(override.startswith("optimizer.params.lr=") for override in overrides)
    rate = [RATE] if file == LORA and not has_rate else []
    return check(load(file, [*rate, *overrides]), "F", data_parallel)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_our_files_are_sound_on_any_number_of_ranks(file: Path):
    for data_parallel in (1, 3, 64):
        assert problems(file=file, data_parallel=data_parallel) == []


# Reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("[1]", "expected a JSON object, found [1]"),
        ("3", "expected a JSON object, found 3"),
        ('{"a": 1,\n "a": 2}', "a: given twice in one object"),
        ('{"a": {"b": 1, "b": 1}}', "b: given twice in one object"),
        ('{"a": 1,\n}', "line 2, column 1: trailing comma"),
        ('{"a": [1,]}', "trailing comma"),
        ('{\n  // why\n "a": 1}', "line 2, column 3: JSON has no comments"),
        ('{"a": 1 # why\n}', "line 1, column 9: JSON has no comments"),
        ('/* why */ {"a": 1}', "JSON has no comments"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ('{"a": ' + "9" * 5000 + "}", "is too large a number"),
        ('{"a": 1', "line 1, column 8: expecting ',' delimiter"),
        ("{'a': 1}", "line 1, column 2: expecting property name"),
        ('{"a": 1} {}', "line 1, column 10: extra data"),
        ("[" * 100_000, "nested too deeply"),
        ('{"amp": ' + '{"a": ' * 800 + "1" + "}" * 801, "nested too deeply"),
        (" " * 2_000_000, "not a settings file"),
    ],
)
def test_text_that_is_refused(tmp_path: Path, text: str, line: str):
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load(file, [])
    (found,) = caught.value.problems
    assert found.startswith(f"{file}: ")
    assert line in found
    assert len(found) < 300


def test_files_that_are_refused(tmp_path: Path):
    (tmp_path / "latin.json").write_bytes(b'{"a":\n "\xe9"}')
    os.mkfifo(tmp_path / "pipe.json")
    for name, line in [
        ("latin.json", "line 2: not UTF-8 text"),
        ("pipe.json", "is not a regular file"),
        ("latn.json", f"does not exist; did you mean {tmp_path}/latin.json?"),
        ("", "is a folder"),
        ("none/ds.json", "does not exist"),
    ]:
        with pytest.raises(UserError, match=line):
            load(tmp_path / name, [])


def test_a_file_that_ships_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = (FOLDER / "lora_bf16.json").read_text()
    for name in ("lora_bf16", "lora_bf16.json"):
        assert located(Path(name)).read_text() == shipped
    (tmp_path / "lora").mkdir()  # a run's folder, say, is no such file
    assert located(Path("lora")).name == "lora.json"
    (tmp_path / "lora_bf16.json").write_text("{}")  # the user's own comes first
    assert located(Path("lora_bf16.json")) == Path("lora_bf16.json")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lora_bf6", "lora_bf6: does not exist; did you mean lora_bf16?; with llama-lora come "),
        ("tuned_5.json", "tuned_5.json: does not exist; did you mean tuned.json?; with llama-lora"),
        ("sub/rows_1.json", "sub/rows_1.json: does not exist; with llama-lora come full, "),
        ("qqq", "qqq: does not exist; with llama-lora come full, full_zero3, lora, "),
        ("ds_configs/lora.json", "; the one that comes with llama-lora is lora"),
    ],
)
def test_a_name_that_is_no_file_says_which_ship(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for rows in ("tuned_4.json", "sub/rows.json"):
        (tmp_path / rows).write_text('[{"text": "a"}]')
    (tmp_path / "tuned.json").write_text('{"bf16": {"enabled": true}}')
    with pytest.raises(UserError) as caught:
        located(Path(name))
    (found,) = caught.value.problems
    assert line in found


def test_of_all_else_its_reader_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert located(Path("mine")) == Path("mine")


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path: Path):
    file = tmp_path / "ds.json"
    file.write_bytes(b'\xef\xbb\xbf{\r\n"steps_per_print": 1\r\n}\r\n')
    assert load(file, []) == {"steps_per_print": 1}


# Overrides -------------------------------------------------------------------------------------


def test_overrides_are_json_else_text():
    config = load(
        LORA,
        [
            "optimizer.params.lr=1e-4",
            "fp16.enabled=false",
            "bf16.enabled=true",
            "optimizer.type=Adam",
            "optimizer.params.betas=[0.5, 0.6]",
            "steps_per_print=2",
        ],
    )
    assert config["optimizer"]["params"]["lr"] == 1e-4
    assert config["optimizer"]["type"] == "Adam"
    assert config["optimizer"]["params"]["betas"] == [0.5, 0.6]
    assert "fp16" not in config  # a section that is off is as good as not written
    assert config["bf16"] == {"enabled": True}
    assert config["steps_per_print"] == 2
    assert config["scheduler"]["type"] == "WarmupDecayLR"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "optimizer.parms.lr=1",
            "unknown key optimizer.parms.lr; did you mean optimizer.params.lr",
        ),
        ("lr=1", "unknown key lr"),
        ("fp16.enabled.x=1", "unknown key fp16.enabled.x; did you mean fp16.enabled?"),
        ("gradient_clipping", "expected KEY=VALUE"),
        ("gradient_clipping=", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("optimizer..lr=1", "expected KEY=VALUE"),
    ],
)
def test_overrides_that_are_refused(override: str, line: str):
    with pytest.raises(UserError) as caught:
        load(LORA, [override, override])
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].startswith(f"--override {override}: ")
    assert line in caught.value.problems[0]


def test_a_key_that_is_overridden_twice_is_refused():
    twice = ["steps_per_print=1", "gradient_clipping=2", "steps_per_print=2", "steps_per_print=2"]
    with pytest.raises(UserError) as caught:
        load(LORA, twice)
    assert caught.value.problems == ["--override steps_per_print: given twice; keep one"]


# Checking --------------------------------------------------------------------------------------

BATCH, MICRO, STEPS = keys.BATCH


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (f"{MICRO}=1.5", f'{MICRO}: expected an integer of at least 1, or "auto", found 1.5'),
        (f"{MICRO}=1.0", f'{MICRO}: expected an integer of at least 1, or "auto", found 1.0'),
        (f'{MICRO}="2"', f'{MICRO}: expected an integer of at least 1, or "auto", found "2"'),
        (f"{MICRO}=true", 'expected an integer of at least 1, or "auto", found true'),
        (f"{MICRO}=null", f"{MICRO}: missing; write it, or {BATCH}"),
        (f"{MICRO}=0", 'expected an integer of at least 1, or "auto", found 0'),
        (f"{STEPS}=-1", f'{STEPS}: expected an integer of at least 1, or "auto", found -1'),
        (f"{BATCH}=many", f'{BATCH}: expected an integer of at least 1, or "auto", found "many"'),
        (f"{BATCH}=3", f"{BATCH}: 3 is not {MICRO} 1 x {STEPS} 2 x 1 data-parallel rank = 2"),
        ("gradient_clipping=-1", "gradient_clipping: expected a finite number of at least 0"),
        (
            "gradient_clipping=NaN",
            "gradient_clipping: expected a finite number of at least 0 (0: of",
        ),
        ("gradient_clipping=x", 'found "x"'),
        ("gradient_clipping=false", "found false"),
        ("optimizer.params.lr=-1e-4", "optimizer.params.lr: expected a finite number above 0"),
        ("optimizer.params.lr=0", "optimizer.params.lr: expected a finite number above 0"),
        ("optimizer.params.lr=true", "optimizer.params.lr: expected a finite number above 0"),
        ("optimizer.params.lr=[1e-4]", "optimizer.params.lr: expected a finite number above 0"),
        ("optimizer.params.betas=[0.9]", "expected two numbers from 0 to below 1, or "),
        ("optimizer.params.betas=[0.9, 1]", "expected two numbers from 0 to below 1"),
        ("optimizer.params.eps=0", "optimizer.params.eps: expected a finite number above 0"),
        ("optimizer.params.weight_decay=-1", "expected a finite number of at least 0, or "),
        ("optimizer.params.torch_adam=false", "torch_adam: expected true (else DeepSpeed compiles"),
        ("optimizer.params.max_grad_norm=1", "max_grad_norm: write gradient_clipping"),
        ("optimizer.params.adam_w_mode=false", "adam_w_mode: false has no effect on AdamW"),
        ("optimizer.type=Lamb", 'optimizer.type: expected one of AdamW, Adam, found "Lamb"'),
        ("optimizer.params=3", "optimizer.params: expected an object, found 3"),
        ("optimizer={}", "optimizer.type: missing; write one of AdamW, Adam"),
        ("optimizer=[]", "optimizer: expected an object, found []"),
        ("scheduler.type=warmuplr", "scheduler.type: expected one of WarmupLR, WarmupDecayLR"),
        ("scheduler.type=LRRangeTest", "scheduler.type: expected one of WarmupLR"),
        ('scheduler.type={"a": 1}', "one of WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle, f"),
        ("scheduler.type=[]", "scheduler.type: expected one of WarmupLR"),
        ("scheduler={}", "scheduler.type: missing; write one of WarmupLR"),
        ("scheduler.type=WarmupLR", "scheduler.params.total_num_steps: unknown key"),
        ("scheduler.params.warmup_num_steps=0", "expected an integer of at least 1, or "),
        ("scheduler.params.warmup_num_steps=0.1", "expected an integer of at least 1, or "),
        ("scheduler.params.total_num_steps=-5", "expected an integer of at least 1, or "),
        ("scheduler.params.warmup_type=cosine", "expected one of linear, log"),
        ("scheduler.params.warmup_max_lr=3e-4", "0.0003 is not optimizer.params.lr, "),
        ("scheduler.params.warmup_min_lr=1", "1 is above optimizer.params.lr, "),
        ("scheduler.params={}", "scheduler.params.warmup_num_steps: missing; write a number, or"),
        ('fp16={"loss_scale": 0}', "fp16.enabled: missing; without it DeepSpeed ignores"),
        ("fp16.enabled=1", 'fp16.enabled: expected true or false, or "auto", found 1'),
        ("bf16.enabled=true", "fp16.enabled, bf16.enabled: both are true"),
        ("fp16.auto_cast=true", "fp16.auto_cast: "),
        ("fp16.initial_scale_power=200", "expected an integer from 0 to 32, found 200"),
        ("fp16.initial_scale_power=-1", "expected an integer from 0 to 32, found -1"),
        ("fp16.loss_scale=-1", "fp16.loss_scale: expected a finite number of at least 0"),
        ("fp16.loss_scale_window=0", "fp16.loss_scale_window: expected an integer of at least 1"),
        ("fp16.hysteresis=0", "fp16.hysteresis: expected an integer of at least 1"),
        ("fp16.min_loss_scale=0", "fp16.min_loss_scale: expected an integer of at least 1"),
        ("fp16.min_loss_scale=65537", "fp16.min_loss_scale: above the initial scale of 65536"),
        (
            'bf16={"enabled": "auto", "check_grad_overflow": false}',
            "check_grad_overflow: expected t",
        ),
        ("zero_optimization.stage=4", "zero_optimization.stage: expected an integer from 0 to 3"),
        ("zero_optimization.stage=true", "zero_optimization.stage: expected an integer from 0"),
        ("zero_optimization.stage=0", "zero_optimization.stage: 0 with fp16; write 1, 2 or 3"),
        ("zero_optimization={}", "zero_optimization.stage: missing"),
        ("zero_optimization=true", "zero_optimization: expected an object, found true"),
        ("zero_optimization.reduce_bucket_size=0", "a whole number of elements above 0, or "),
        ("zero_optimization.reduce_bucket_size=1.5", "a whole number of elements above 0"),
        ("zero_optimization.allgather_bucket_size=3", "an even number of elements above 0"),
        ("zero_optimization.cpu_offload=true", "cpu_offload: write offload_optimizer"),
        ("zero_optimization.compute_grad_norm=false", "the norm is always computed"),
        ('zero_optimization.offload_param={"device":"cpu"}', "needs zero_optimization.stage 3"),
        ('zero_optimization.offload_optimizer={"device":"nvme"}', "expected one of none, cpu"),
        (
            'activation_checkpointing={"partition_activations": true}',
            "activation_checkpointing: use the option --checkpointing",
        ),
        ('tensor_parallel={"autotp_size": 2}', "tensor_parallel: would replace the process groups"),
        ('elasticity={"enabled": true}', "elasticity: no longer in DeepSpeed"),
        ("prescale_gradients=true", "prescale_gradients: the loss is already divided"),
        ("steps_per_print=0", "steps_per_print: expected a whole number of at least 1"),
        ('comet={"enabled": true}', "comet.enabled: the package comet_ml is not installed"),
        ("comet.api_key=x", "comet.api_key: a secret"),
    ],
)
def test_a_value_that_is_refused(override: str, line: str):
    found = problems(override)
    assert any(line in problem for problem in found), found
    assert all(problem.startswith("F: ") for problem in found)
    if "comet" not in override and override not in ("optimizer={}", "scheduler.params={}"):
        assert len(found) == 1, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"gradient_cliping": 1.0},
            "gradient_cliping: unknown key; did you mean gradient_clipping",
        ),
        ({"zero_optimisation": {}}, "unknown key; did you mean zero_optimization?"),
        ({"zzz": 1}, "zzz: unknown key"),
        ({"fp16": {"enabled": True, "los_scale": 0}}, "did you mean fp16.loss_scale?"),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"devise": "cpu"}}},
            "did you mean zero_optimization.offload_optimizer.device?",
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weigth_decay": 0}}},
            "did you mean optimizer.params.weight_decay?",
        ),
        ({"gradient_clipping": ...}, "gradient_clipping: missing; write a norm, or 0 for off"),
        ({"optimizer": {"type": "AdamW", "params": {}}}, "optimizer.params.lr: missing"),
        ({MICRO: ...}, f"{MICRO}: missing; write it, or {BATCH}"),
        ({"zero_optimization": ...}, "zero_optimization.stage: 0 with fp16"),
        (
            {"scheduler": {"type": "OneCycle", "params": {"cycle_first_step_size": 5}}},
            "scheduler.params.cycle_min_lr: missing",
        ),
    ],
)
def test_a_file_that_is_refused(tmp_path: Path, change: dict[str, Any], line: str):
    config = {
        key: value for key, value in (json.loads(LORA.read_text()) | change).items() if value != ...
    }
    found = check(config, "F", 1)
    assert any(line in problem for problem in found), found


def test_all_problems_come_at_once():
    assert len(problems("optimizer.params.lr=-1", "fp16.hysteresis=0", f"{BATCH}=3")) == 3


def test_fp32_needs_no_zero():
    assert problems("fp16.enabled=false", "zero_optimization.stage=0") == []


def test_one_cycle_and_the_betas():
    cycle = {"type": "OneCycle", "params": {"cycle_min_lr": 1e-5, "cycle_first_step_size": 3}}
    (found,) = problems(f"scheduler={json.dumps(cycle)}")
    assert "optimizer.params.betas: OneCycle replaces them" in found
    cycle["params"]["cycle_momentum"] = False
    assert problems(f"scheduler={json.dumps(cycle)}") == []
