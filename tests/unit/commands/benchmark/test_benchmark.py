"""What the benchmark runs and how it counts. No test asserts a speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.commands.benchmark import command as benchmark
from llama.commands.benchmark.report import arithmetic, speed, spread
from llama.data.batches import first_windows
from llama.data.rows import bundled
from llama.data.types import IGNORE
from llama.engine import Step
from llama.errors import UserError
from llama.parallel.mesh import SINGLE, Mesh
from llama.settings import BenchmarkOptions, LoRAOptions, check_benchmark, deepspeed_json
from tests.support.model_files import (
    ROOT,
    TINY,
    huggingface_config,
    random_state,
    write_gguf,
)
from tests.support.tiny_runs import resolved_json, started, succeeded, write_meta_model

ALONE = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]


def step(tokens: int, supervised: int) -> Step:
    return Step(1.0, supervised, tokens, 1e-3, None, 1.0, None, True)


def resolved(config: dict[str, Any]) -> deepspeed_json.Resolved:
    return resolved_json(config, 1, TINY, fp16=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, TINY, random_state(TINY))
    return path


# Options


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, "bf16"), ("fp16", "fp16"), ("float32", "fp32")]
)
def test_built_in_deepspeed_config_is_sound_and_of_the_asked_precision(asked, expected) -> None:
    config = benchmark.deepspeed_config(BenchmarkOptions(precision=asked, batch=3))
    assert deepspeed_json.check(config, "built-in", 1) == []
    result = resolved(config)
    assert (result.precision, result.micro_batch, result.accumulation) == (expected, 3, 1)
    assert result.gradient_clipping == 1.0 and result.notes == []


def test_built_in_zero_section_is_that_of_the_shipped_file() -> None:
    shipped = deepspeed_json.load(ROOT / "ds_configs/lora_bf16.json", [])
    built_in = benchmark.deepspeed_config(BenchmarkOptions())
    assert built_in["zero_optimization"] == shipped["zero_optimization"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (BenchmarkOptions(rows=3), "--rows"),
        (BenchmarkOptions(deepspeed=Path("ds.json"), batch=2), "--batch"),
        (BenchmarkOptions(deepspeed=Path("ds.json"), precision="fp16"), "--precision"),
        (BenchmarkOptions(memory_limit_gb=0.0), "--memory_limit_gb"),
        (BenchmarkOptions(memory_limit_gb=float("nan")), "--memory_limit_gb"),
        (BenchmarkOptions(steps=0), "--steps"),
        (BenchmarkOptions(warmup=-1), "--warmup"),
        (BenchmarkOptions(seq_len=1), "--seq_len"),
        (BenchmarkOptions(tensor_parallel=2), "--tensor_parallel"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(options, named) -> None:
    (problem,) = check_benchmark(options, world_size=1)
    assert problem.startswith(f"{named}: ")


def test_sound_settings_have_no_problem() -> None:
    assert check_benchmark(BenchmarkOptions(steps=1, warmup=0), world_size=1) == []


def test_problems_of_options_and_of_the_file_come_together(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"train_micro_batch_size_per_gpu": 1, "nonsense": 1}')
    with pytest.raises(UserError) as raised:
        benchmark.read_job(BenchmarkOptions(deepspeed=file, steps=0))
    text = str(raised.value)
    assert "--steps" in text and "nonsense" in text and "gradient_clipping" in text


# What is run


def test_what_train_refuses_of_a_base_and_a_schedule_is_refused(tmp_path: Path) -> None:
    cycle = {"cycle_min_lr": 1e-5, "cycle_first_step_size": 3, "cycle_momentum": False}
    of_one_rate = {"type": "OneCycle", "params": cycle}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"base": "int8"}, {"zero_optimization": {"stage": 3}}, "--base int8: "),
        ({"lora": LoRAOptions(b_lr_ratio=4)}, {"scheduler": of_one_rate}, "--lora.b_lr_ratio: "),
    ]
    for given, change, line in cases:
        document = json.loads((ROOT / "ds_configs/lora_bf16.json").read_text()) | change
        (tmp_path / "ds.json").write_text(json.dumps(document))
        with pytest.raises(UserError) as caught:
            benchmark.read_job(BenchmarkOptions(deepspeed=tmp_path / "ds.json", **given))
        (found,) = caught.value.problems
        assert found.startswith(line)


def test_dense_rows_are_documents_with_every_prediction_supervised(model: Path) -> None:
    options = BenchmarkOptions(model=str(model), batch=2, seq_len=8)
    job = benchmark.read_job(options)
    epochs = benchmark.epochs(job, resolved(job.deepspeed), ALONE, steps=3)
    windows = first_windows(epochs, 3)
    batches = [batch for window in windows for batch in window]
    assert len(windows) == len(batches) == 3
    for batch in batches:
        assert batch.boundaries == (0, 8, 16) and batch.supervised == 14
        assert (batch.targets == IGNORE).nonzero().flatten().tolist() == [7, 15]
        assert torch.equal(batch.targets[:7], batch.tokens[1:8])
    rows = torch.cat([batch.tokens for batch in batches]).view(6, 8)
    assert len(rows.unique(dim=0)) == 6, "no row is repeated"
    assert 0 <= int(rows.min()) and int(rows.max()) < TINY.vocab_size


def test_windows_go_on_into_the_next_epoch(model: Path) -> None:
    job = benchmark.read_job(BenchmarkOptions(model=str(model), batch=1, seq_len=4))
    epochs = benchmark.epochs(job, resolved(job.deepspeed), ALONE, steps=2)
    windows = first_windows(epochs, 5)
    seen = [tuple(window[0].tokens.tolist()) for window in windows]
    assert len(seen) == 5 and set(seen[:2]) == set(seen[2:4]) and len(set(seen)) == 2


def test_accumulation_makes_windows_of_several_micro_batches(model: Path) -> None:
    file = ROOT / "ds_configs/lora_bf16.json"
    job = benchmark.read_job(BenchmarkOptions(model=str(model), seq_len=4, deepspeed=file))
    epochs = benchmark.epochs(job, resolved(job.deepspeed), ALONE, steps=2)
    assert [len(window) for window in first_windows(epochs, 2)] == [2, 2]


# How it is counted


def test_arithmetic_is_four_operations_per_weight_and_token_more_where_recomputed() -> None:
    ffn = 2 * 3 * 64 * 192
    linear = 2 * (64 * 64 * 2 + 32 * 64 * 2) + ffn
    needed = 4 * (linear * 100 + 96 * 64 * 90)
    expected = {"none": needed, "ffn": needed + 2 * ffn * 100, "block": 1.5 * needed}
    for checkpointing, done in expected.items():
        result = arithmetic(TINY, checkpointing, [step(100, 90)], [0.5], matrix_rate=1e12)
        assert result["tflops"] == pytest.approx(needed / 0.5 / 1e12)
        assert result["tflops_with_recomputation"] == pytest.approx(done / 0.5 / 1e12)
        assert result["matrix_share"] == pytest.approx(needed / 0.5 / 1e12)
    assert arithmetic(TINY, "none", [step(1, 1)], [1.0], None)["matrix_share"] is None


def test_speed_is_of_each_step_by_its_own_tokens() -> None:
    result = speed([step(100, 50), step(300, 100), step(100, 50)], [1.0, 1.5, 0.25])
    assert result["tokens_per_second"] == {"median": 200.0, "min": 100.0, "max": 400.0}
    assert (result["tokens"], result["supervised_tokens"], result["seconds"]) == (500, 200, 2.75)


def test_spread_of_an_even_number_is_between_the_middle_two() -> None:
    assert spread([4.0, 1.0, 2.0, 10.0]) == {"median": 3.0, "min": 1.0, "max": 10.0}


# As processes


def run(script: str, *arguments: str) -> dict[str, Any]:
    return succeeded(started("python", script, *arguments))


@pytest.mark.slow
def test_launcher_trains_the_steps_it_reports(model: Path) -> None:
    size = ("--batch", "2", "--seq_len", "16", "--steps", "3", "--warmup", "1")
    document = run("launcher/benchmark.py", "--model", str(model), *size, "--json")
    assert (document["tokens"], document["supervised_tokens"]) == (96, 90)
    assert document["precision"] == "bf16" and document["skipped_steps"] == 0
    assert document["deepspeed"]["zero_optimization"]["stage"] == 1
    assert (document["base"], document["shard_base"]) == ("half", "false")
    assert document["loss_first"] != document["loss_last"]
    assert document["command"].endswith("--json")


@pytest.mark.slow
def test_launcher_counts_the_tokens_of_rows(tmp_path: Path) -> None:
    """On a model in Meta's layout with a tokenizer.model beside it."""
    folder, data = write_meta_model(tmp_path), bundled("instructions_200")
    rows = ("--data", str(data), "--rows", "6", "--seq_len", "512")
    size = ("--batch", "100", "--steps", "1", "--warmup", "0", "--precision", "float32")
    document = run("launcher/benchmark.py", "--model", str(folder), *rows, *size, "--json")
    options = BenchmarkOptions(model=str(folder), data=[data], rows=6, seq_len=512)
    prepared = benchmark.read_job(options).data
    assert prepared is not None and len(prepared.examples) == 6
    assert document["tokens"] == sum(len(example.input_ids) for example in prepared.examples)
    supervised = sum(example.supervised for example in prepared.examples)
    assert document["supervised_tokens"] == supervised


@pytest.mark.slow
def test_peer_script_gives_a_ratio_for_each_pair(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(huggingface_config(TINY)).save_pretrained(tmp_path)
    size = ("--batch", "2", "--seq_len", "16", "--pairs", "2", "--precision", "float32")
    document = run("tests/support/peer_benchmark.py", "--model", str(tmp_path), *size)
    (result,) = document["peers"].values()
    assert document["best_peer"] == "default" and result["order"] == "alternate"
    assert result["loss"]["ours"] == pytest.approx(result["loss"]["theirs"], rel=1e-4)
    slowest = result["ours"]["tokens_per_second"]["min"]
    assert slowest > 0 and len(result["ratios"]) == 2
    assert result["ratio"]["min"] <= result["ratio"]["median"] <= result["ratio"]["max"]
    assert {"transformers", "peft", "torch"} <= document["packages"].keys()
