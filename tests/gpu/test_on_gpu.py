"""Whole processes on a CUDA device: text, losses, loss scaling, memory, launchers.

Run with `-s` to see the measured numbers; `--junitxml` keeps them too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama.data.rows import bundled
from tests.gpu.children import Done, run_together, train_together, with_launcher
from tests.support.skips import needs_gpus, outside
from tests.support.tiny_runs import launched, read_lines, succeeded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    needs_gpus(),
]

Note = Callable[[str, object], None]

STEPS = 20
LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 5e-3}
"""Largest relative difference of a step's loss from float32's on the CPU."""
LAUNCHER_TOLERANCE = 1e-3
"""Of two runs of one computation, relative: attention's backward pass adds up in any order."""
PEAK_GIB = {(1, 2048): 14.2, (4, 1024): 18.0, (4, 2048): 18.0}
"""Rows and tokens of a row to the most that a step of LLaMA-7B's shape may hold."""
ADAPTER = 8_388_608
"""Parameters of rank 16 on wq and wv of LLaMA-7B."""
PADDING = 1 << 16


@pytest.fixture
def note(record_property: Note) -> Note:
    """Says a measured number and keeps it in the report."""

    def say(name: str, value: object) -> None:
        print(f"\n  {name}: {value}", end="")
        record_property(name, value)

    return say


def test_greedy_text_in_float32_is_the_published_one() -> None:
    folder = outside("stories260k")
    model = ("--model", folder, "--raw", "--prompt", "", "--max_new_tokens", "200")
    done = launched("python", "generate.py", *model, "--precision", "float32", "--json")
    assert succeeded(done)["text"].encode() == (folder / "golden.txt").read_bytes()


@pytest.mark.parametrize("way", ["auto", "false"])
def test_the_program_s_own_proof_agrees(way: str) -> None:
    """Its reference is launched operation by operation, whatever the run's kernels are. Of those of
    float32 nothing is asked here: `auto` takes none."""
    asked = ("--deepspeed", "ds_configs/lora_bf16.json", "--model", "random:llama-3.2-1b")
    done = launched("python", "verify.py", *asked, "--layers", "1", "--compile", way, "--json")
    assert len(succeeded(done)["runs"]) == 2


# Losses


def stories_steps(device: str, precision: str, *more: str) -> list[str | Path]:
    files = ("--model", outside("stories260k"), "--rows", bundled("instructions_200"))
    command = (sys.executable, "-m", "tests.gpu.stories_steps", *files)
    return [*command, "--device", device, "--precision", precision, *more]


@pytest.fixture(scope="module")
def runs() -> dict[str, Done]:
    """The same steps on the CPU and in each precision, and one run that starts by overflowing."""
    commands = {
        "reference": stories_steps("cpu", "fp32", "--steps", str(STEPS)),
        "overflow": stories_steps(
            "cuda", "fp16", "--steps", "40", "--windows", "1", "--initial_scale_power", "32"
        ),
    }
    for precision in LOSS_TOLERANCE:
        commands[precision] = stories_steps("cuda", precision, "--steps", str(STEPS))
    return run_together(commands, hide_gpu=["reference"])


@pytest.mark.parametrize("precision", LOSS_TOLERANCE)
def test_losses_are_those_of_float32_on_the_cpu(
    precision: str, runs: dict[str, Done], note: Note
) -> None:
    expected, found = succeeded(runs["reference"]), succeeded(runs[precision])
    assert len(expected["losses"]) == STEPS
    assert expected["losses"][-1] < 0.8 * expected["losses"][0], "else little is compared"
    assert not any(found["skipped"]) and found["finite"]
    pairs = list(zip(found["losses"], expected["losses"], strict=True))
    largest = max(abs(a - b) / b for a, b in pairs)
    note(f"largest relative difference of a loss, {precision}", f"{largest:.2e}")
    assert largest <= LOSS_TOLERANCE[precision]


def test_the_loss_scale_recovers_from_overflow(runs: dict[str, Done], note: Note) -> None:
    """2^32 overflows fp16. The first overflow is forgiven (hysteresis 2), each later one halves."""
    run = succeeded(runs["overflow"])
    skipped, scales, losses = run["skipped"], run["loss_scales"], run["losses"]
    overflows = skipped.index(False)
    note("skipped steps", overflows)
    note("loss scale it settles at", scales[-1])
    assert 2 <= overflows <= 30
    assert not any(skipped[overflows:]), "once it fits it keeps fitting"
    assert scales[:overflows] == [2.0 ** (32 - i) for i in range(overflows)]
    assert set(scales[overflows:]) == {scales[overflows - 1]}
    assert set(losses[: overflows + 1]) == {losses[0]}, "a skipped step changes nothing"
    assert losses[-1] < 0.8 * losses[0]
    assert run["finite"] and all(map(math.isfinite, losses))


# LLaMA-7B's shape


@pytest.fixture(scope="module")
def benchmarks() -> dict[tuple[int, int], Done]:
    """A few steps of each shape, each capped to a 40 GB card; their memory is all that is asked."""
    fixed = ("--model", "random:llama-7b", "--precision", "fp16", "--checkpointing", "block")
    command = (sys.executable, "launcher/benchmark.py", *fixed, "--memory_limit_gb", "40")
    short = ("--warmup", "1", "--steps", "2", "--json")
    return run_together(
        {
            (rows, tokens): [*command, "--batch", str(rows), "--seq_len", str(tokens), *short]
            for rows, tokens in PEAK_GIB
        }
    )


@pytest.mark.parametrize("shape", PEAK_GIB, ids=lambda shape: "x".join(map(str, shape)))
def test_7b_fits_in_its_peak(
    shape: tuple[int, int], benchmarks: dict[tuple[int, int], Done], note: Note
) -> None:
    result = succeeded(benchmarks[shape])
    assert result["precision"] == "fp16" and result["memory_limit_gb"] == 40
    for name in ("loading_peak", "peak", "reserved"):
        note(f"{name}, GiB", round(result[f"{name}_memory_bytes"] / 2**30, 3))
    assert result["peak_memory_bytes"] <= PEAK_GIB[shape] * 2**30


@pytest.mark.parametrize("gib", [20, 24])
def test_auto_keeps_what_a_cap_holds(gib: int, note: Note) -> None:
    """4 x 1024 tokens take 14.2 GiB with each block computed again, 24.6 with nothing."""
    shape = ("--batch", "4", "--seq_len", "1024", "--checkpointing", "auto")
    cap = ("--memory_limit_gb", str(gib), "--warmup", "1", "--steps", "2", "--json")
    result = succeeded(
        launched("python", "benchmark.py", "--model", "random:llama-7b", *shape, *cap)
    )
    note("kept", result["kept"])
    for name in ("peak", "reserved"):
        note(f"{name}, GiB", round(result[f"{name}_memory_bytes"] / 2**30, 2))
    assert result["reserved_memory_bytes"] <= gib * 2**30
    assert result["peak_memory_bytes"] > 15 * 2**30, "the room was used"


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Done, Path]]:
    """The report's run by both launchers, four steps of it: the process, and what it wrote."""
    model = ("--deepspeed", "ds_configs/lora.json", "--model", "random:llama-7b")
    options = (*model, "--seq_len", "2048", "--max_steps", "4")
    each = {name: (with_launcher(name), ()) for name in ("deepspeed", "torchrun")}
    return train_together(tmp_path_factory.mktemp("trainings"), options, each)


def steps(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(folder / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_7b_trains_its_adapter_alone(
    launcher: str, trainings: dict[str, tuple[Done, Path]], note: Note
) -> None:
    done, folder = trainings[launcher]
    summary = succeeded(done)
    assert summary["status"] == "finished" and summary["steps"] == 4
    note("optimizer states, bytes", summary["optimizer_state_bytes"])
    note("peak memory, GiB", round(summary["peak_memory_bytes"] / 2**30, 3))
    assert 0 <= summary["optimizer_state_bytes"] - 12 * ADAPTER <= PADDING
    lines = steps(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert not lines[-1]["skipped"]


def test_7b_loses_the_same_by_both_launchers(
    trainings: dict[str, tuple[Done, Path]], note: Note
) -> None:
    for done, _ in trainings.values():
        succeeded(done)
    ours, theirs = (steps(trainings[launcher][1]) for launcher in ("deepspeed", "torchrun"))
    for key in ("tokens", "supervised_tokens", "skipped", "loss_scale"):
        assert [line[key] for line in ours] == [line[key] for line in theirs]
    pairs = [(a["loss"], b["loss"]) for a, b in zip(ours, theirs, strict=True)]
    largest = max(abs(a - b) / b for a, b in pairs)
    note("losses", [round(a, 5) for a, _ in pairs])
    note("largest relative difference", f"{largest:.2e}")
    assert largest <= LAUNCHER_TOLERANCE
