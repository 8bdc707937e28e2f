"""`plan`: what it prints and writes, its exit status, and that a suggestion can be used."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama.commands.plan import inputs as plan_inputs
from llama.commands.plan.command import plan
from llama.commands.plan.inputs import Inputs as PlanInputs
from llama.commands.plan.inputs import read_inputs
from llama.commands.plan.suggest import FILLED, deepspeed_of, job_of, least_bytes, ordered, suggest
from llama.errors import UserError
from llama.metrics.hardware import GPUS
from llama.model.presets import PRESETS
from llama.planning.fit import estimate
from llama.settings import LoRAOptions, PlanOptions, TrainOptions, deepspeed_json
from llama.settings.options import parse
from llama.weights.open_model import sizes_of
from tests.support.model_files import ROOT
from tests.support.tiny_runs import CONFIG, write_json, write_model, write_rows
from tests.support.tiny_runs import deepspeed_json as settings

FP16 = ROOT / "ds_configs/lora.json"


def options(**given: Any) -> PlanOptions:
    return PlanOptions(**({"model": "llama-3.2-1b", "gpu": "rtx-4090", "deepspeed": FP16} | given))


def planned(capsys: pytest.CaptureFixture[str], **given: Any) -> tuple[int, dict[str, Any]]:
    status = plan(options(json=True, **given))
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.long
def test_a_plan_adds_up_and_says_what_fits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, found = planned(capsys, output_dir=tmp_path / "out", rows=1000)
    assert status == 0 and found["fits"]
    assert sum(found["terms"].values()) == found["peak_bytes"]
    assert found["peak_bytes"] + sum(found["beside"].values()) == found["used_bytes"]
    weights = 2 * PRESETS["llama-3.2-1b"].parameter_count()
    assert found["terms"]["weights"] == pytest.approx(weights, rel=1e-3)
    assert found["largest_micro_batch"] > 1 and found["largest_seq_len"] > 1024
    assert found["steps"] == 5 * 500 and found["hours"] > 0
    written = json.loads((tmp_path / "out/plan.json").read_text())
    assert {name: written[name] for name in found} == found
    assert (tmp_path / "out/plan.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out/plan.html").read_text()


@pytest.mark.slow
@pytest.mark.long
def test_a_plan_that_does_not_fit_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(options(model="llama-13b")) == 1
    assert "IT DOES NOT FIT" in capsys.readouterr().out


def test_real_rows_are_planned_by_their_lengths(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write_json(tmp_path / "ds.json", settings(accumulation=2))
    status, found = planned(
        capsys,
        model=str(write_model(tmp_path / "model")),
        deepspeed=file,
        data=[write_rows(tmp_path / "rows.json", 30)],
        template="chatml",
        seq_len=128,
        epochs=3,
    )
    documents = found["job"]["documents"]
    assert status == 0 and len(documents) > 1 and sum(documents) <= 128
    assert found["steps"] % 3 == 0


def test_names_of_shapes_need_no_weights() -> None:
    assert sizes_of("llama-3.1-405b") == (PRESETS["llama-3.1-405b"], None)
    assert sizes_of("random:llama-7b")[0] == PRESETS["llama-7b"]


def test_a_folder_is_planned_by_its_headers(tmp_path: Path) -> None:
    config, tokenizer = sizes_of(str(write_model(tmp_path / "model")))
    assert config == CONFIG and tokenizer == tmp_path / "model"


def test_auto_keeps_what_the_gpu_holds() -> None:
    found = plan_inputs.read_inputs(options(checkpointing="auto", gpu="t4", model="llama-3.2-3b"))
    whole = plan_inputs.plan_of(found, found.deepspeed, found.options)
    assert whole.fits and not isinstance(whole.job.checkpointing, str)
    assert len(set(whole.job.kept)) <= 2 and whole.job.kept == tuple(sorted(whole.job.kept))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gpu": "a100"}, "did you mean a100-"),
        ({"network": "wifi"}, "--network: expected one of"),
        ({"network": "25gbe", "gpus": 8}, "--network: has no effect on one node"),
        ({"tensor_parallel": 3, "gpus": 8}, "--tensor_parallel: 3 does not divide the 8 GPUs"),
        ({"suggest": True}, "--suggest writes one"),
        ({"rows": 5, "data": [ROOT / "README.md"]}, "--rows: --data says it"),
        ({"model": "llama-7c"}, "llama-7"),
        ({"lora": None, "gpus": 0}, "--gpus: expected at least 1"),
    ],
)
def test_mistakes(given: dict[str, Any], says: str) -> None:
    given = {name: value for name, value in given.items() if name != "lora"}
    with pytest.raises(UserError, match=says):
        read_inputs(options(**given))


def test_bf16_on_a_gpu_without_it_is_refused() -> None:
    with pytest.raises(UserError, match="bf16 is not supported"):
        plan(options(gpu="t4", deepspeed=ROOT / "ds_configs/lora_bf16.json"))


# --suggest


def suggested(**given: Any) -> Any:
    return suggest(read_inputs(options(deepspeed=None, suggest=True, **given)))


@pytest.mark.parametrize("gpu", ["rtx-4090", "t4"])
def test_a_suggestion_fits_and_passes_our_own_check(gpu: str) -> None:
    found = suggested(gpu=gpu)
    assert found.plan.fits and found.plan.job.micro_batch * found.plan.job.accumulation == 16
    assert not deepspeed_json.check(found.deepspeed, "suggested", data_parallel=1)
    assert ("bf16" in found.deepspeed) == GPUS[gpu].bf16
    assert found.way.stage == 1 and not found.way.offload  # one GPU, and room


@pytest.mark.parametrize(
    ("batch", "gpus", "nodes"),
    [(24, 1, 1), (12, 1, 1), (10, 4, 1), (48, 4, 2), (3, 8, 1), (7, 2, 1)],
)
def test_a_suggested_step_has_the_rows_that_were_asked_for(
    batch: int, gpus: int, nodes: int
) -> None:
    """Where the ranks divide them; else the fewest above that all ranks share alike."""
    inputs = read_inputs(options(deepspeed=None, suggest=True, batch=batch, gpus=gpus, nodes=nodes))
    for way in ordered(inputs):
        n = inputs.world_size // way.tensor_parallel
        document = deepspeed_of(inputs, way)
        of_rank = way.micro_batch * document["gradient_accumulation_steps"]
        assert of_rank == -(-batch // n)


def test_a_batch_that_the_ranks_do_not_divide_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = str(write_model(tmp_path / "model"))
    given: dict[str, Any] = {"deepspeed": None, "suggest": True, "gpus": 2, "model": model}
    for batch, line in (
        (7, "--batch 7 does not divide over 2 data-parallel ranks: a step has 8"),
        (6, ""),
    ):
        plan(options(**given, batch=batch, output_dir=tmp_path))
        out = capsys.readouterr().out
        assert (line in out) and ("does not divide" in out) == bool(line)


@pytest.mark.long
def test_the_command_of_a_suggestion_is_planned_alike(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The file that is written gives the same plan as the suggestion had."""
    status, first = planned(capsys, deepspeed=None, suggest=True, output_dir=tmp_path)
    job = first["job"]
    again = {"checkpointing": job["checkpointing"], "compile": "auto" if job["fused"] else "false"}
    if job["checkpointing"] == "input":
        again["checkpointing"] = "block"
    names = {"all": "none", "ffn_inputs": "ffn"}
    again["checkpointing"] = names.get(again["checkpointing"], again["checkpointing"])
    _, second = planned(capsys, deepspeed=tmp_path / "deepspeed.json", **again)
    assert status == 0 and second["used_bytes"] == first["used_bytes"]
    assert second["seconds_per_step"] == first["seconds_per_step"]


def test_a_command_names_no_folder_that_is_not_known(tmp_path: Path) -> None:
    """A bare name is a shape; where its weights lie is the user's to say."""
    here = str(write_model(tmp_path / "model"))
    for model, named in (("llama-3.2-1b", "MODEL"), (here, here)):
        found = suggest(read_inputs(options(deepspeed=None, suggest=True, model=model)))
        assert f" --model {named} " in found.command(tmp_path)
        rows = "as it stands it trains on the bundled rows: add --data and your own"
        model = [f"MODEL: the folder, file or hub name of {model}'s weights"]
        assert found.unsaid() == [*(model if named == "MODEL" else []), rows]
        mine = replace(found, options=replace(found.options, data=[tmp_path]))
        assert rows not in mine.unsaid()


def test_a_command_trains_what_was_planned(tmp_path: Path) -> None:
    """All that `plan` was told of the run is in it, and is what `train` then reads."""
    rows = write_rows(tmp_path / "my rows.json", 9)
    lora = LoRAOptions(rank=8, alpha=4.0, kind="dora", scale="alpha/sqrt(r)", targets=("wq", "wo"))
    given: dict[str, Any] = {"lora": lora, "data": [rows], "template": "chatml", "pack": False}
    given |= {"epochs": 2, "max_steps": 7, "overlong": "cut", "seq_len": 64}
    model = str(write_model(tmp_path / "model"))
    found = suggest(read_inputs(options(deepspeed=None, suggest=True, model=model, **given)))
    words = shlex.split(found.command(tmp_path))
    read = parse(TrainOptions, words[words.index("--deepspeed") :], "train", "")
    assert {name: getattr(read, name) for name in given} == given
    assert (read.model, read.deepspeed) == (model, tmp_path / "deepspeed.json")
    assert read.checkpointing == found.way.checkpointing


@pytest.mark.long
def test_the_fastest_way_that_fits_is_taken() -> None:
    """No way before it in the order fits."""
    given = options(deepspeed=None, suggest=True, model="llama-3.2-3b", gpu="t4", seq_len=4096)
    inputs = read_inputs(given)
    found = suggest(inputs)
    for way in ordered(inputs):
        if way == found.way:
            break
        job = job_of(inputs, way)
        assert max(least_bytes(job), estimate(job)) > FILLED * inputs.place.gpu.memory
    assert found.way.checkpointing != "none"


@pytest.mark.parametrize("seq_len", [40_000, 200_000])
def test_what_fits_nowhere_is_refused_with_what_it_needs(seq_len: int) -> None:
    """Which is more than there is: of the shorter rows by a trace, of the longer by arithmetic."""
    with pytest.raises(UserError, match=r"fits: each needs at least \d") as refused:
        suggested(model="llama-7b", gpu="t4", seq_len=seq_len)
    ((needed, there),) = re.findall(r"at least ([\d.]+) GiB of ([\d.]+);", str(refused.value))
    assert float(needed) > float(there)


def of_many(monkeypatch: pytest.MonkeyPatch, gpu: str) -> PlanInputs:
    """70B's widths in 12 blocks, 23 GiB, on two nodes of four GPUs with a slow network between."""
    monkeypatch.setitem(PRESETS, "wide", PRESETS["llama-3-70b"].with_layers(12))
    given = {"model": "wide", "gpu": gpu, "gpus": 4, "nodes": 2, "network": "25gbe"}
    return read_inputs(options(deepspeed=None, suggest=True, batch=32, **given))


@pytest.mark.slow
def test_a_base_that_no_gpu_holds_is_shared_within_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    found = suggest(of_many(monkeypatch, "rtx-4090"))
    job = found.plan.job
    assert (found.way.shard_base, job.base_sharers, job.data_parallel) == ("true", 4, 8)
    assert found.plan.fits
    words = shlex.split(found.command(Path("plan")))
    read = parse(TrainOptions, words[words.index("--deepspeed") + 2 :], "train", "")
    assert (read.shard_base, read.tensor_parallel) == ("true", 1)


def test_a_base_that_each_gpu_holds_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a shard of it that does; else each number of ranks is asked about once."""
    ways = ordered(of_many(monkeypatch, "rtx-4090"))
    of_degree = {p: {w.shard_base for w in ways if w.tensor_parallel == p} for p in (1, 2)}
    assert of_degree == {1: {"false", "true", "all"}, 2: {"false"}}
    assert not any(w.shard_base != "false" for w in ways if w.stage != 1)
    assert {w.shard_base for w in ordered(of_many(monkeypatch, "h100-80gb"))} == {"false"}


def test_least_bytes_is_below_the_plan() -> None:
    """It rules ways out, and must not rule out one that fits."""
    inputs = read_inputs(options(deepspeed=None, suggest=True))
    for way in ordered(inputs)[::7]:
        job = job_of(inputs, way)
        assert least_bytes(job) <= estimate(job)


def test_every_way_has_a_json_that_passes() -> None:
    given = options(deepspeed=None, suggest=True, gpus=8, nodes=2, method="full")
    inputs = read_inputs(given)
    found = ordered(inputs)
    assert {way.tensor_parallel for way in found} == {1, 2, 4, 8}
    for way in found:
        n = inputs.world_size // way.tensor_parallel
        assert not deepspeed_json.check(deepspeed_of(inputs, way), "suggested", data_parallel=n)
