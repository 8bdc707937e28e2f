"""What a run is given: the DeepSpeed JSON with nothing left open."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from llama.errors import UserError
from llama.settings.deepspeed_json import check, keys, load, resolve
from llama.settings.deepspeed_json.kinds import Kind
from llama.settings.deepspeed_json.resolve import LEFT
from tests.unit.settings.deepspeed_json.test_check import LORA, RATE, problems


def run_of(config: dict[str, Any] | list[str], **changes: Any):
    if isinstance(config, list):
        has_rate = any(override.startswith("optimizer.params.lr=") for override in config)
        config = load(LORA, config if has_rate else [RATE, *config])
    fixed = {"data_parallel": 1, "total_steps": 100, "width": 576, "fp16_supported": True}
    arguments = fixed | changes
    return resolve(config, **arguments)


@pytest.mark.parametrize(
    ("sizes", "data_parallel", "expected"),
    [
        ((None, 2, 3), 4, (24, 2, 3)),
        ((None, 2, None), 4, (8, 2, 1)),
        ((24, 2, None), 4, (24, 2, 3)),
        ((24, None, 3), 4, (24, 2, 3)),
        ((24, None, None), 4, (24, 6, 1)),
        ((24, 2, 3), 4, (24, 2, 3)),
        ((24, 2, 3), 3, None),
        ((25, 2, None), 4, None),
        ((25, None, 3), 4, None),
        ((3, None, None), 4, None),
        ((None, None, 3), 4, None),
    ],
)
def test_the_batch_triple(sizes: tuple, data_parallel: int, expected: tuple | None):
    config = json.loads(LORA.read_text()) | dict(zip(keys.BATCH, sizes, strict=True))
    config = {key: value for key, value in config.items() if value is not None}
    found = check(config, "F", data_parallel)
    assert len(found) == (0 if expected else 1), found
    if expected:
        resolved = run_of(config, data_parallel=data_parallel)
        assert tuple(resolved.engine[key] for key in keys.BATCH) == expected
        assert (resolved.micro_batch, resolved.accumulation) == expected[1:]


def test_nothing_is_left_to_deepspeeds_defaults_and_the_file_is_not_changed():
    config = load(LORA, [RATE])
    resolved = run_of(config)
    assert config == load(LORA, [RATE])
    assert '"auto"' not in json.dumps(resolved.engine)
    assert resolved.engine["scheduler"]["params"] == {
        "total_num_steps": 100,
        "warmup_num_steps": 3,
        "warmup_min_lr": pytest.approx(1e-3 / 3),
        "warmup_max_lr": 1e-3,
        "warmup_type": "linear",
    }
    assert (resolved.precision, resolved.zero_stage, resolved.gradient_clipping) == ("fp16", 1, 1.0)
    note, falls = resolved.notes
    assert "the last step has 0.000347, 35% of the peak" in falls and resolved.filled[1] == falls
    assert note == (
        '"auto" is: scheduler.params.total_num_steps 100, scheduler.params.warmup_num_steps 3, '
        "scheduler.params.warmup_max_lr 0.001, scheduler.params.warmup_min_lr 0.000333333"
    )


def test_an_overridden_learning_rate_reaches_the_schedule():
    resolved = run_of(["optimizer.params.lr=5e-5"])
    assert resolved.engine["scheduler"]["params"]["warmup_max_lr"] == 5e-5


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("scheduler.params.warmup_min_lr=0.01", "warmup_min_lr: 0.01 is above optimizer.params.lr"),
        (
            'scheduler={"type": "OneCycle", "params": {"cycle_min_lr": 0.01, "cycle_momentum": '
            'false, "cycle_first_step_size": "auto"}}',
            "cycle_min_lr: 0.01 is above optimizer.params.lr",
        ),
        ("scheduler.params.warmup_max_lr=0.01", "0.01 is not optimizer.params.lr"),
    ],
)
def test_a_schedule_is_held_to_a_rate_that_is_auto(override: str, line: str):
    config = load(LORA, [override])
    del config["optimizer"]
    assert check(config, "F", 1) == []
    with pytest.raises(UserError) as caught:
        run_of(config)
    (found,) = caught.value.problems
    assert line in found and "0.00295" in found and '"auto"' in found


def test_fp16_becomes_bf16_where_the_device_has_none():
    resolved = run_of([], fp16_supported=False)
    assert resolved.precision == "bf16"
    assert "fp16" not in resolved.engine
    assert resolved.engine["bf16"] == {"enabled": True}
    assert resolved.notes[:-2] == [
        "fp16 is not supported on this device: running in bf16, with no loss scale"
    ]


def test_other_precisions():
    bf16 = ["fp16.enabled=false", "bf16.enabled=true"]
    assert run_of(bf16).precision == "bf16"
    with pytest.raises(UserError, match="bf16 is not supported on this device: enable fp16"):
        run_of(bf16, bf16_supported=False)
    with pytest.raises(UserError, match="enable neither"):
        run_of([], fp16_supported=False, bf16_supported=False)
    resolved = run_of(["fp16.enabled=false", "zero_optimization.stage=0"], fp16_supported=False)
    assert (resolved.precision, resolved.zero_stage) == ("fp32", 0)


def test_torch_adam_is_set_and_said():
    config = load(LORA, [RATE])
    del config["optimizer"]["params"]["torch_adam"]
    resolved = run_of(config)
    assert resolved.engine["optimizer"]["params"]["torch_adam"] is True
    assert "torch_adam" in resolved.notes[0]


@pytest.mark.parametrize("total_steps", [1, 2, 7, 1000])
def test_schedules_fit_the_run(total_steps: int):
    params = {"cycle_min_lr": 0, "cycle_first_step_size": "auto", "cycle_second_step_size": "auto"}
    for scheduler in (
        {"type": "OneCycle", "params": params | {"cycle_momentum": False}},
        {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        {
            "type": "WarmupCosineLR",
            "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"},
        },
    ):
        override = f"scheduler={json.dumps(scheduler)}"
        assert problems(override) == []
        found = run_of([override], total_steps=total_steps).engine["scheduler"]["params"]
        if "cycle_min_lr" in found:
            steps = found["cycle_first_step_size"], found["cycle_second_step_size"]
            assert sum(steps) == total_steps and steps[0] >= 1
            assert found["cycle_max_lr"] == 1e-3
        else:
            assert 1 <= found["warmup_num_steps"] <= total_steps


@pytest.mark.parametrize(
    ("override", "note"),
    [
        ("scheduler.params.total_num_steps=1000", "total_num_steps is 1000; this run has 100 step"),
        ("scheduler.params.total_num_steps=10", "total_num_steps is 10; this run has 100 steps"),
        ("scheduler.params.warmup_min_lr=0", "WarmupDecayLR starts at learning rate 0"),
    ],
)
def test_a_schedule_that_does_not_fit_is_said(override: str, note: str):
    auto, *_, found = run_of([override]).notes
    assert auto.startswith('"auto" is: ') and note in found


@pytest.mark.parametrize("warmup", ["auto", 1, 2, 10])
@pytest.mark.parametrize("total_steps", [1, 3, 4, 12, 40, 100, 300, 1000])
def test_the_rate_of_the_last_step_is_said_as_deepspeed_has_it(total_steps: int, warmup: int | str):
    from deepspeed.runtime.lr_schedules import WarmupDecayLR

    found = run_of([f"scheduler.params.warmup_num_steps={warmup}"], total_steps=total_steps)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = WarmupDecayLR(optimizer, **found.engine["scheduler"]["params"])
    rates: list[float] = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    falls = [note for note in found.filled if "the last step has" in note]
    if max(rates) == 1e-3 and LEFT * 1e-3 < rates[-1] < 1e-3:
        share = f"{rates[-1]:.3g}, {rates[-1] / 1e-3:.0%} of the peak"
        assert len(falls) == 1 and f"the last step has {share}" in falls[0]
    else:
        assert falls == []


def test_a_fall_to_zero_is_as_said():
    (note,) = run_of(["scheduler.params.warmup_min_lr=0"], total_steps=100).filled
    assert "the last step" not in note


def cycle(**params: Any) -> str:
    params = {"cycle_min_lr": 1e-5, "cycle_momentum": False} | params
    return f"scheduler={json.dumps({'type': 'OneCycle', 'params': params})}"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"cycle_first_step_size": 2000}, ["are 2000 and 2000, 4000 in all; this run has 100 s"]),
        ({"cycle_first_step_size": 20}, ["are 20 and 20, 40 in all; this run has 100 steps"]),
        ({"cycle_first_step_size": 50}, []),
        ({"cycle_first_step_size": 30, "cycle_second_step_size": "auto"}, []),
        (
            {"cycle_first_step_size": 50, "decay_lr_rate": 0.1},
            ["decay_lr_rate has no effect without decay_step_size"],
        ),
        ({"cycle_first_step_size": 20, "decay_lr_rate": 0.1, "decay_step_size": 9}, []),
        (
            {"cycle_first_step_size": 50, "decay_lr_rate": 0.1, "decay_step_size": 9},
            ["decay_lr_rate has no effect: it comes after the cycle"],
        ),
    ],
)
def test_a_cycle_that_does_not_fit_is_said(params: dict[str, Any], said: list[str]):
    found = [note for note in run_of([cycle(**params)]).notes if '"auto" is' not in note]
    assert len(found) == len(said), found
    assert all(line in note for line, note in zip(said, found, strict=True))


# DeepSpeed's own view --------------------------------------------------------------------------


def test_every_supported_key_is_known_to_deepspeed():
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime import constants, lr_schedules
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    models = {
        "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
        "zero_optimization": DeepSpeedZeroConfig,
        "comms_logger": CommsLoggerConfig,
        "tensorboard": TensorBoardConfig,
        "csv_monitor": CSVConfig,
        "wandb": WandbConfig,
        "comet": CometConfig,
    }
    for section, model in models.items():
        fields = model.model_fields
        known = {field.alias or name for name, field in fields.items()}
        ours = keys.KEYS[section]
        assert isinstance(ours, dict)
        passed_on = {name for name, node in ours.items() if isinstance(node, Kind | dict)}
        assert passed_on <= known, section
    for name, table in keys.SCHEDULERS.items():
        arguments = getattr(lr_schedules, name).__init__.__code__.co_varnames
        assert set(table) <= set(arguments), name
    assert constants.GRADIENT_CLIPPING_DEFAULT == 1.0  # why it must be written
    assert set(keys.BATCH) == {
        constants.TRAIN_BATCH_SIZE,
        constants.TRAIN_MICRO_BATCH_SIZE_PER_GPU,
        constants.GRADIENT_ACCUMULATION_STEPS,
    }


@pytest.mark.parametrize(
    ("width", "expected"), [(64, 5e-3), (576, 2.95e-3), (4096, 4.15e-4), (8192, 2.08e-4)]
)
def test_an_auto_learning_rate_falls_with_the_width_of_the_model(width: int, expected: float):
    resolved = run_of(["optimizer.params.lr=auto"], width=width)
    assert resolved.engine["optimizer"]["params"]["lr"] == expected
    assert resolved.engine["scheduler"]["params"]["warmup_max_lr"] == expected
    assert any(f"{expected:g}" in note and str(width) in note for note in resolved.notes)
