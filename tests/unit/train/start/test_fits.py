"""A run is held against the memory that there is before any weights load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llama.errors import UserError
from llama.parallel.mesh import SINGLE, Mesh
from llama.planning.job import Job
from llama.planning.memory import memory
from llama.settings import TrainOptions
from llama.settings.deepspeed_json import load
from llama.train.start import fits
from llama.train.start.fits import Verdict, job_of, needed_bytes, require_fit, weights_bytes
from llama.train.start.inputs import Inputs, read_inputs
from llama.train.start.schedule import Schedule, schedule
from tests.support.tiny_runs import deepspeed_json, write_json, write_model, write_rows

ALONE = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, Schedule]:
    folder = tmp_path_factory.mktemp("fits")
    document = deepspeed_json() | {"train_micro_batch_size_per_gpu": 4}
    options = TrainOptions(
        deepspeed=write_json(folder / "ds.json", document),
        model=str(write_model(folder / "model")),
        data=[write_rows(folder / "rows.json", 40)],
        template="chatml",
        seq_len=200,
        checkpointing="none",
    )
    inputs = read_inputs(options, load(options.deepspeed, []), ALONE)
    return inputs, schedule(inputs, ALONE)


def needed_of(job: Job) -> int:
    return needed_bytes(job, memory(job))


def with_free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """So many bytes are free, and no run is too small to be refused."""
    monkeypatch.setattr(fits, "free_bytes", lambda device: count)
    monkeypatch.setattr(fits, "SMALL", 0)


def test_a_run_that_fits_is_told_in_a_line_and_recorded(run: tuple[Inputs, Schedule]) -> None:
    verdict = require_fit(*run, ALONE, CPU)
    assert isinstance(verdict, Verdict)
    assert verdict.line.startswith("0.0 of ") and "GiB free for this rank" in verdict.line
    record = verdict.record
    assert sum(record["terms"].values()) == record["peak_bytes"] > 0
    assert record["seconds_per_step"] is None  # not known of a CPU


def test_the_job_has_the_largest_micro_batch_of_the_data(run: tuple[Inputs, Schedule]) -> None:
    rows = sorted(sum(len(e.input_ids) for e in row) for row in run[0].training.packed)
    on_cuda = job_of(*run, ALONE, torch.device("cuda"))
    assert on_cuda.tokens == sum(rows[-4:])
    assert on_cuda.documents and len(on_cuda.documents) > 4
    job = job_of(*run, ALONE, CPU)  # a document a row, which is sooner traced
    assert job.documents == (-(-sum(rows[-4:]) // 4),) * 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_estimate_will_do_with_room(
    device: Any, run: tuple[Inputs, Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(job_of(*run, ALONE, CPU), device=device)
    asked: list[str] = []
    monkeypatch.setattr(fits, "estimated", lambda job: asked.append("few") or memory(job))
    monkeypatch.setattr(fits, "memory", lambda job: asked.append("whole") or memory(job))
    for room in (10 * needed_of(job), needed_of(job) + 1):
        assert fits.planned(job, room).peak_bytes == memory(job).peak_bytes
    assert asked == ["few", "few", "whole"]


def test_weights_alone_that_do_not_fit(
    run: tuple[Inputs, Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 1000)
    monkeypatch.setattr(fits, "memory", lambda job: pytest.fail("a step was traced"))
    with pytest.raises(UserError) as refused:
        require_fit(*run, ALONE, CPU)
    (line,) = refused.value.problems
    sharing = "--shard_base cuts them up over more machines"
    for said in ("its weights alone", "not even its weights fit", sharing, "--suggest", "--plan"):
        assert said in line


def test_a_step_that_does_not_fit_says_what_would(
    run: tuple[Inputs, Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(*run, ALONE, CPU)
    room = (weights_bytes(job) + needed_of(job)) // 2
    with_free(monkeypatch, int(room / fits.CPU_LENIENCE))
    with pytest.raises(UserError, match=r"a micro-batch of [12] rows fits; one row of") as refused:
        require_fit(*run, ALONE, CPU)
    rows = int(str(refused.value).split("a micro-batch of ")[1][0])
    smaller = replace(job, micro_batch=rows, documents=None, supervised=None)
    assert memory(smaller).used_bytes <= room


def test_a_cpu_is_given_the_benefit_of_the_doubt(
    run: tuple[Inputs, Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free there grows when others give memory back."""
    needed = needed_of(job_of(*run, ALONE, CPU))
    with_free(monkeypatch, int(needed / fits.CPU_LENIENCE) + 1000)
    assert require_fit(*run, ALONE, CPU) is not None
    monkeypatch.undo()
    monkeypatch.setattr(fits, "free_bytes", lambda device: 0)
    assert require_fit(*run, ALONE, CPU) is not None  # far below SMALL


def test_nothing_is_planned_where_that_is_asked(
    run: tuple[Inputs, Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 0)
    inputs = replace(run[0], options=replace(run[0].options, plan=False))
    assert require_fit(inputs, run[1], ALONE, CPU) is None


def test_the_rank_with_the_least_memory_decides(
    run: tuple[Inputs, Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 2**40)
    monkeypatch.setattr(Mesh, "highest", lambda self, *numbers: [max(*numbers, -1000)])
    with pytest.raises(UserError, match="not even its weights"):
        require_fit(*run, ALONE, CPU)


def test_on_cuda_the_context_is_there_already(run: tuple[Inputs, Schedule]) -> None:
    job = replace(job_of(*run, ALONE, CPU), device="cuda")
    found = memory(job)
    assert needed_bytes(job, found) == found.used_bytes - found.bytes_of("CUDA context")


def test_sharded_weights_are_counted_as_shares(run: tuple[Inputs, Schedule]) -> None:
    job = job_of(*run, ALONE, CPU)
    sharded = replace(job, data_parallel=4, zero=replace(job.zero, stage=3))
    assert weights_bytes(sharded) == weights_bytes(job) // 4
    shared = replace(job, data_parallel=4, base_sharers=2)
    assert weights_bytes(shared) == weights_bytes(job) // 2


@pytest.mark.parametrize(
    ("sharers", "says"),
    [
        (1, "--shard_base cuts them up over the ranks of a host (--shard_base all: over these 4)"),
        (2, "--shard_base all cuts them up over all 4 ranks"),
        (4, "on more machines each has a smaller share"),
    ],
)
def test_weights_that_do_not_fit_are_to_be_shared_by_more(
    sharers: int, says: str, run: tuple[Inputs, Schedule]
) -> None:
    job = replace(job_of(*run, ALONE, CPU), data_parallel=4, base_sharers=sharers)
    assert says in fits._help(job, run[0], 0)
