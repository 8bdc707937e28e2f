"""`train` as a process, through each of its launchers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llama.adapters.match import parameter_count
from llama.settings import LoRAOptions
from tests.support.closeness import TRAINED, distance
from tests.support.tiny_runs import (
    CONFIG,
    Launcher,
    deepspeed_json,
    launched,
    read_lines,
    succeeded,
    write_json,
    write_model,
    write_rows,
)

pytestmark = pytest.mark.slow

STEP_KEYS = {
    *("step", "epoch", "loss", "learning_rate", "grad_norm", "loss_scale", "skipped", "tokens"),
    *("supervised_tokens", "seconds", "tokens_per_second", "mfu", "peak_memory_bytes"),
}
FILES = {
    *("run.json", "metrics.jsonl", "norms.jsonl", "samples.jsonl", "summary.json", "report.html"),
    *("adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
    *("adapter/training.json", "adapter/chat_template.jinja", "adapter/README.md"),
}
TARGETS = ("wq", "wv", "wo", "w2")
"""Both kinds of parallel layer."""
ADAPTER = parameter_count(CONFIG, LoRAOptions(16, targets=TARGETS))


class Runs:
    """Runs on one model and one set of rows; each is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = write_model(folder / "model")
        self.rows = write_rows(folder / "rows.json", 11)
        self.held_out = write_rows(folder / "held_out.json", 3)
        self._made: dict[tuple[Any, ...], Path] = {}

    def make(
        self, launcher: Launcher, ranks: int = 1, accumulation: int = 4, tensor_parallel: int = 1
    ) -> Path:
        """The output folder. Two epochs of 11 rows, one to a micro-batch: with windows of 4 or of
        2 x 2, three steps each, the last with three rows."""
        key = (launcher, ranks, accumulation, tensor_parallel)
        if key not in self._made:
            name = "-".join(map(str, key))
            settings = deepspeed_json(1, accumulation)
            done = launched(
                launcher,
                "train.py",
                *("--deepspeed", write_json(self.folder / f"{name}.json", settings)),
                *("--model", self.model, "--data", self.rows, "--eval_data", self.held_out),
                *("--template", "chatml", "--seq_len", "64", "--pack", "false"),
                *("--lora.targets", ",".join(TARGETS), "--tensor_parallel", str(tensor_parallel)),
                *("--epochs", "2", "--output_dir", self.folder / name, "--json"),
                ranks=ranks,
            )
            summary = succeeded(done)
            assert summary == json.loads((self.folder / name / "summary.json").read_text())
            self._made[key] = self.folder / name
        return self._made[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def steps(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(out / "metrics.jsonl") if "loss" in line]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in steps(out)]


def eval_losses(out: Path) -> list[float]:
    return [line["eval_loss"] for line in read_lines(out / "metrics.jsonl") if "eval_loss" in line]


def adapters_apart(one: Path, other: Path) -> float:
    adapters = [load_file(out / "adapter" / "adapter_model.safetensors") for out in (one, other)]
    return distance(*adapters)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_every_launcher_gives_the_same_losses(launcher: Launcher, runs: Runs) -> None:
    """Bit for bit: it is one process each time, with the same operations in the same order."""
    plain, other = runs.make("python"), runs.make(launcher)
    assert len(losses(plain)) == 6
    assert losses(other) == losses(plain)
    assert eval_losses(other) == eval_losses(plain)
    assert adapters_apart(plain, other) == 0


@pytest.mark.parametrize("tensor_parallel", [1, 2], ids=["data parallel", "tensor parallel"])
def test_two_ranks_train_to_what_one_does(tensor_parallel: int, runs: Runs) -> None:
    """The window is the same: two data-parallel ranks accumulate half as often. Dropout is on, and
    the last window of an epoch gives three micro-batches to two ranks."""
    copies = 2 // tensor_parallel
    one, two = runs.make("python"), runs.make("deepspeed", 2, 4 // copies, tensor_parallel)
    keys = ("step", "epoch", "tokens", "supervised_tokens", "learning_rate")
    for ours, theirs in zip(steps(two), steps(one), strict=True):
        assert [ours[key] for key in keys] == [theirs[key] for key in keys]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=TRAINED)
    assert losses(two) == pytest.approx(losses(one), rel=TRAINED)
    assert eval_losses(two) == pytest.approx(eval_losses(one), rel=TRAINED)
    assert adapters_apart(one, two) <= TRAINED
    topology = json.loads((two / "run.json").read_text())["topology"]
    assert topology == {
        "world_size": 2,
        "tensor_parallel": tensor_parallel,
        "sequence_parallel": 1,
        "data_parallel": copies,
    }


def test_the_run_learns(runs: Runs) -> None:
    out = runs.make("python")
    summary = json.loads((out / "summary.json").read_text())
    first, last = summary["epoch_losses"]
    assert last < first
    assert summary["eval_loss"] < summary["eval_loss_before"]


def test_the_output_folder_holds_what_is_promised(runs: Runs) -> None:
    out = runs.make("python")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert FILES <= files
    assert any(file.startswith("tensorboard/train/events") for file in files)
    for step in (3, 6):  # one at the end of each epoch
        assert f"checkpoints/step-{step}/adapter/adapter_model.safetensors" in files
        assert f"checkpoints/step-{step}/adapter/adapter_config.json" in files
        assert f"checkpoints/step-{step}/adapter/training.json" in files
    assert not [file for file in files if "partial" in file]


def test_metrics_hold_every_promised_key(runs: Runs) -> None:
    lines = steps(runs.make("python"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1]
    for line in lines:
        assert set(line) >= STEP_KEYS
        assert line["loss"] > 0 and line["grad_norm"] > 0 and line["learning_rate"] == 5e-3
        assert line["skipped"] is False and line["loss_scale"] is None and line["mfu"] is None
        assert line["tokens"] > line["supervised_tokens"] > 0
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"])
        assert line["peak_memory_bytes"] > 1e8


def test_an_epoch_s_average_is_over_its_tokens(runs: Runs) -> None:
    out = runs.make("python")
    summary = json.loads((out / "summary.json").read_text())
    for epoch, average in enumerate(summary["epoch_losses"]):
        lines = [line for line in steps(out) if line["epoch"] == epoch]
        total = sum(line["loss"] * line["supervised_tokens"] for line in lines)
        count = sum(line["supervised_tokens"] for line in lines)
        # The losses are float32's, 24 bits each; their sum here is not.
        assert average == pytest.approx(total / count, rel=1e-6)


def test_samples_are_prompts_of_both_kinds_of_rows(runs: Runs) -> None:
    """Of 11 training rows the first of each quarter; of the held-out ones the first."""
    out = runs.make("python")
    samples = read_lines(out / "samples.jsonl")
    trained, held_out = (
        [row["prompt"] for row in json.loads(path.read_text())]
        for path in (runs.rows, runs.held_out)
    )
    found = [(sample["rows"], sample["prompt"]) for sample in samples]
    assert found == [
        *(("training", prompt) for prompt in trained[::3]),
        *(("held-out", prompt) for prompt in held_out),
    ]
    assert all(set(sample) == {"rows", "prompt", "before", "after"} for sample in samples)
    assert any(sample["before"] != sample["after"] for sample in samples)


def test_only_the_adapter_is_optimized(runs: Runs) -> None:
    """Two moments of each of its parameters and a float32 master, and nothing besides."""
    out = runs.make("python")
    record, summary = (
        json.loads((out / f"{name}.json").read_text()) for name in ("run", "summary")
    )
    assert record["trainable_parameters"] == ADAPTER
    assert record["total_parameters"] == CONFIG.parameter_count() + ADAPTER
    assert record["trainable_share"] == pytest.approx(ADAPTER / record["total_parameters"])
    held = summary["optimizer_state_bytes"]
    assert 8 * ADAPTER <= held <= 12 * ADAPTER + 64


def test_run_json_resolves_everything(runs: Runs) -> None:
    record = json.loads((runs.make("python") / "run.json").read_text())
    assert record["precision"] == "fp32" and record["steps"] == 6
    assert record["deepspeed"]["train_batch_size"] == 4
    assert record["options"]["lora"]["targets"] == list(TARGETS)
    degrees = {"tensor_parallel": 1, "sequence_parallel": 1, "data_parallel": 1}
    assert record["topology"] == {"world_size": 1, **degrees}
    assert [len(entry["sha256"]) for entry in record["data"]] == [64, 64]
    assert record["packages"]["torch"] and record["model_fingerprint"]
    assert record["model"]["dim"] == CONFIG.dim


def test_summary_says_how_it_ended(runs: Runs) -> None:
    summary = json.loads((runs.make("python") / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["steps"] == 6
    assert summary["seconds"] > 0 and summary["peak_memory_bytes"] > 1e8
    assert summary["tokens_per_second"] > 0


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_rank_that_has_no_row_is_no_fault(stage: int, runs: Runs) -> None:
    """Two ranks and one row: one of them sees a gradient in no step, and what trains trains."""
    name = f"one-row-{stage}"
    done = launched(
        "deepspeed",
        "train.py",
        *("--deepspeed", write_json(runs.folder / f"{name}.json", deepspeed_json(stage, 1))),
        *("--model", runs.model, "--data", write_rows(runs.folder / f"{name}-rows.json", 1)),
        *("--template", "chatml", "--seq_len", "64", "--epochs", "5"),
        *("--output_dir", runs.folder / name, "--json"),
        ranks=2,
    )
    assert succeeded(done)["steps"] == 5
