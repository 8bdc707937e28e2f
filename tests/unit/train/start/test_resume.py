"""Where a run starts, in one process and with no engine: checkpoints of zeros are found and judged
as those of a run."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama.adapters.match import expected_shapes, parameter_count
from llama.adapters.peft_format import AdapterConfig
from llama.checkpoint import Checkpoint, RunState, Store
from llama.engine.state import EngineState
from llama.errors import UserError
from llama.model.config import LINEARS
from llama.parallel.mesh import SINGLE, Mesh
from llama.settings import LoRAOptions, TrainOptions
from llama.settings.deepspeed_json import load
from llama.train.start.identity import identity, topology
from llama.train.start.inputs import Inputs, read_inputs
from llama.train.start.resume import Resumer, Start
from llama.train.start.schedule import Schedule, schedule
from tests.support.tiny_runs import CONFIG, deepspeed_json, write_json, write_model, write_rows

ALONE = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]
CPU = torch.device("cpu")
DEEP = replace(CONFIG, n_layers=16)
"""Deep enough for adapters of full rank on all its layers to outgrow it."""


@dataclass
class Run:
    """A run's inputs and folder."""

    inputs: Inputs
    folder: Path

    @property
    def plan(self) -> Schedule:
        return schedule(self.inputs, ALONE)

    @property
    def store(self) -> Store:
        return Store(self.folder / "checkpoints")

    def given(self, **options: Any) -> Run:
        inputs = replace(self.inputs, options=replace(self.inputs.options, **options))
        return Run(inputs, self.folder)

    def save(self, step: int, **run: Any) -> Path:
        """A checkpoint as the run makes it at `step`, and the run's record."""
        options = self.inputs.options
        shapes = expected_shapes(self.inputs.source.config, options.lora)
        zeros = [{name: torch.zeros(shape) for name, shape in shapes.items()} for _ in range(3)]
        checkpoint = Checkpoint(
            engine=EngineState(*zeros, counters={"steps": step}),
            run=RunState(**run),
            total_steps=self.plan.total_steps,
            identity=identity(self.inputs, self.plan, ALONE),
            topology=topology(self.inputs, self.plan, ALONE, CPU),
            random={"torch": "00"},
        )
        (self.folder / "run.json").parent.mkdir(exist_ok=True)
        (self.folder / "run.json").write_text("{}")
        return self.store.save(checkpoint, AdapterConfig(options.lora, "tiny"), keep=3)

    @contextlib.contextmanager
    def resumed(self) -> Iterator[Start]:
        with contextlib.closing(Resumer(self.inputs, self.plan, ALONE, CPU)) as resumer:
            yield resumer.start


@pytest.fixture
def run(tmp_path: Path) -> Run:
    options = TrainOptions(
        deepspeed=write_json(tmp_path / "ds.json", deepspeed_json(accumulation=1)),
        model=str(write_model(tmp_path / "model", DEEP)),
        data=[write_rows(tmp_path / "rows.json", 8)],
        template="chatml",
        pack=False,
        epochs=1,
        output_dir=tmp_path / "run",
    )
    return Run(read_inputs(options, load(options.deepspeed, []), ALONE), tmp_path / "run")


def test_adapters_larger_than_the_model_are_taken_up_again(run: Run) -> None:
    """The highest rank that a run is begun with, on every layer."""
    wide = run.given(lora=LoRAOptions(DEEP.dim, 8.0, 0.0, LINEARS))
    wide.save(3)
    with wide.resumed() as start:
        assert (start.step, start.source) == (3, wide.store.path(3))


def test_a_long_run_s_summary_is_taken_up_again(run: Run) -> None:
    """Its text is longer than the adapter is, and than a file of settings may be."""
    losses = [k / 7 for k in range(200_000)]
    run.save(3, summary={"epoch_losses": losses})
    assert (run.store.path(3) / "trainer.json").stat().st_size > 4 << 20
    with run.resumed() as start:
        assert start.run.summary["epoch_losses"] == losses


@pytest.mark.parametrize("name", ["best", "step-03"])
def test_a_checkpoint_under_another_name_beside_none_is_taken_up(run: Run, name: str) -> None:
    """Named by its user, it is the only one that the run has: there is no newest to compare."""
    saved = run.save(3)
    kept = saved.rename(saved.with_name(name))
    with run.given(resume=str(kept)).resumed() as start:
        assert (start.step, start.source) == (3, kept)


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_position_at_the_end_of_an_epoch_s_windows(run: Run, epoch: int) -> None:
    """All its windows are done and the epoch is not ended: what is left of it is its end, and the
    next window is the first of the next epoch."""
    two = run.given(epochs=2)
    windows = two.plan.epochs.windows_per_epoch
    two.save((epoch + 1) * windows, epoch=epoch, window=windows)
    with two.resumed() as start:
        state = start.run
        assert (state.epoch, state.window) == (epoch, windows)
        assert list(two.plan.epochs.windows(state.epoch, state.window)) == []
        following = next(two.plan.epochs.windows(state.epoch + 1))
        whole = [w for e in range(3) for w in two.plan.epochs.windows(e)]
        assert torch.equal(following[0].tokens, whole[start.step][0].tokens)


@pytest.mark.parametrize(
    ("was", "dropout", "said"),
    [
        ({"micro_batch": 2}, 0.1, "so dropout draws other masks from here on: a like run, not"),
        ({"micro_batch": 2}, 0.0, "so it equals the run that was begun within rounding"),
        ({"zero_stage": 2}, 0.1, "so it equals the run that was begun within rounding"),
        ({"device": "NVIDIA H100"}, 0.1, "so dropout draws other masks from here on"),
    ],
)
def test_a_run_that_is_spread_otherwise_says_how_like_the_one_that_was_begun_it_is(
    run: Run, monkeypatch: pytest.MonkeyPatch, was: dict[str, Any], dropout: float, said: str
) -> None:
    """A mask follows from the micro-batch that it is of, and on GPUs is made in another way."""
    given = run.given(lora=LoRAOptions(dropout=dropout))
    before = {**topology(given.inputs, given.plan, ALONE, CPU), **was}
    with monkeypatch.context() as patched:
        patched.setitem(globals(), "topology", lambda *_: before)
        given.save(3)
    with given.resumed() as start:
        assert start.notes[-1].startswith(said)


def test_a_checkpoint_that_was_being_replaced_is_taken_up(run: Run) -> None:
    """Killed between two renames: the earlier one is set aside, and nothing goes by its name."""
    saved = run.save(3)
    saved.rename(saved.with_name(".step-3.old"))
    (saved.with_name(".step-3.partial")).mkdir()
    with run.resumed() as start:
        assert start.step == 3
    assert os.listdir(saved.parent) == ["step-3"]


def test_what_a_killed_run_left_is_removed_and_what_the_user_has_is_not(run: Run) -> None:
    run.save(3)
    ours = (".adapter.partial", ".samples.jsonl.partial", ".run.json.partial", ".adapter.old")
    theirs = (".bashrc.old", ".thesis.partial", "adapter.old", ".old")
    (run.folder / "adapter").mkdir()
    for name in (*ours, *theirs):
        (run.folder / name).write_text("")
    with run.resumed():
        assert {*os.listdir(run.folder)} == {*theirs, "adapter", "run.json", "checkpoints", ".lock"}


def refusal(run: Run) -> str:
    with pytest.raises(UserError) as refused, run.resumed():
        pass
    (line,) = refused.value.problems
    return line


def with_free(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=1 << 40, used=0, free=number)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_a_disk_without_room_for_the_run_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps and a save after each: the two checkpoints, 12 bytes a parameter, and the adapter,
    4. What is saved already needs no more room."""
    short = run.given(max_steps=2, save_every=1, keep=1)
    config, lora = short.inputs.source.config, short.inputs.options.lora
    need = (2 * 12 + 4) * parameter_count(config, lora)
    with_free(need - 1, monkeypatch)
    assert refusal(short) == (
        f"--output_dir: {run.folder} has room for {need - 1:,} bytes, and the run is to write at "
        f"least {need:,}: make room, lower --keep or --lora.rank, or give another folder"
    )
    assert not run.folder.exists(), "nothing is written by a run that is refused"
    with_free(need, monkeypatch)
    with short.resumed() as start:
        assert start.step == 0
    short.save(1)
    with_free(need // 28 * 16, monkeypatch)
    with short.resumed() as start:
        assert start.step == 1
    with_free(need // 28 * 16 - 1, monkeypatch)
    assert f"at least {need // 28 * 16:,}" in refusal(short)


@pytest.mark.parametrize(
    ("given", "times"), [({}, 2), ({"best": False}, 1), ({"eval_every": 1, "max_steps": 7}, 4)]
)
def test_room_for_the_best_is_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], times: int
) -> None:
    """Two epochs have two evaluations; of seven the best of now, of the one checkpoint, of before,
    and the last. Eight steps an epoch, a checkpoint at the end: 12 bytes a parameter."""
    options = {"epochs": 2, "keep": 1, "save_every": 99, **given}
    held_out = replace(run.inputs, held_out=run.inputs.training)
    evaluated = Run(held_out, run.folder).given(**options)
    inputs = evaluated.inputs
    count = parameter_count(inputs.source.config, inputs.options.lora)
    with_free((12 + 4 * times) * count - 1, monkeypatch)
    assert f"at least {(12 + 4 * times) * count:,}" in refusal(evaluated)


def early(run: Run, early_stop: int | None) -> bool:
    """Whether the run, which ended early at step 3 of 8, is finished under that --early_stop."""
    with run.given(early_stop=early_stop).resumed() as start:
        return start.finished is not None


def test_a_run_that_ended_early_is_finished_as_long_as_that_ends_it(run: Run) -> None:
    run.save(3)
    (run.folder / "adapter").mkdir()
    document = {"status": "finished", "steps": 3, "early_stop": 2}
    write_json(run.folder / "summary.json", document)
    assert [early(run, after) for after in (1, 2, 3, None)] == [True, True, False, False]
    write_json(run.folder / "summary.json", {**document, "early_stop": None})
    assert not early(run, 2), "another --max_steps ended it"


def test_a_finished_run_needs_no_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save(run.plan.total_steps)
    (run.folder / "adapter").mkdir()
    write_json(run.folder / "summary.json", {"status": "finished", "steps": run.plan.total_steps})
    with_free(0, monkeypatch)
    with run.resumed() as start:
        assert start.finished is not None


@pytest.mark.parametrize("where", ["", "checkpoints"])
def test_a_folder_in_which_nothing_can_be_written_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """As a quota that is used up, or a file system mounted read-only, has it."""
    run.save(3)
    temporary_file = tempfile.TemporaryFile

    def made(dir: Path) -> Any:
        if dir == run.folder / where:
            raise OSError(122, "Disk quota exceeded")
        return temporary_file(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", made)
    assert refusal(run) == (
        f"--output_dir: {run.folder / where} cannot be written in: Disk quota exceeded; give "
        "another folder"
    )


def test_a_folder_that_cannot_be_locked_is_refused(run: Run) -> None:
    (run.folder / ".lock").mkdir(parents=True)
    line = refusal(run)
    assert line.startswith(f"--output_dir: {run.folder} cannot be written in: Is a directory")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        *("adapter/a.bin", "adapter_last/a.bin", "best/step-3/a.bin"),
        *("metrics.jsonl", "norms.jsonl", "samples.jsonl", "summary.json", "report.html"),
    ],
)
def test_what_is_of_no_run_is_not_written_over(run: Run, name: str) -> None:
    path = run.folder / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = contents(run.folder)
    held = name.split("/")[0]
    assert refusal(run) == (
        f"--output_dir: {run.folder} holds {held}, which is of no run: give an empty folder"
    )
    assert contents(run.folder) == before


def test_a_link_of_the_user_s_is_not_written_over(run: Run) -> None:
    run.folder.mkdir()
    (run.folder / "adapter").symlink_to("not mounted")
    assert "holds adapter, which is of no run" in refusal(run)


def test_what_a_killed_start_left_and_what_no_run_replaces_is_in_no_one_s_way(run: Run) -> None:
    """Adapters beside a model that lies there: such a run writes no model/."""
    for name in ("tensorboard/train", "best", "model"):
        (run.folder / name).mkdir(parents=True)
    for name in ("log.txt", "log-rank-1.txt", ".lock", "notes.txt", "model/config.json"):
        (run.folder / name).write_text("something")
    for name in ("metrics.jsonl", "norms.jsonl"):
        (run.folder / name).write_text("")
    with run.resumed() as start:
        assert start.step == 0


def test_no_run_writes_over_the_model_that_it_trains(run: Run) -> None:
    """Nor over what it is given besides, be there a run already, or a link on the way."""
    model = Path(run.inputs.options.model)
    full = run.given(method="full", output_dir=model.parent)
    full = Run(full.inputs, model.parent)
    said = f"--output_dir: the run would write {model}, where --model {model} is: give another"
    assert refusal(full) == f"{said} folder"
    (link := model.parent / "link").symlink_to(model.parent)
    assert "--model" in refusal(full.given(model=str(link / "model")))
    tokenizer = {"model": "random:llama-7b", "tokenizer": model / "tokenizer.json"}
    assert "--tokenizer" in refusal(full.given(**tokenizer))
    run.save(3)
    (run.folder / "adapter").mkdir()
    (run.folder / "adapter" / "adapter_config.json").write_text("{}")
    assert "--init_adapter" in refusal(run.given(init_adapter=run.folder))


def test_a_last_result_without_its_checkpoints_is_not_removed(run: Run) -> None:
    (run.folder / "adapter_last").mkdir(parents=True)
    (run.folder / "run.json").write_text("{}")
    assert "holds the adapter_last of a run whose checkpoints are gone" in refusal(run)


def test_the_command_that_goes_on_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same one would begin another folder where none was named, and be refused under a --resume
    of its own."""
    monkeypatch.chdir(tmp_path)
    with run.resumed() as start:
        assert start.going_on == "the same command goes on"
    with run.given(output_dir=None).resumed() as start:
        folder = f"--output_dir {start.folder}"
        assert start.going_on == f"the same command with {folder} goes on"
    source = run.save(3)
    with run.given(output_dir=None, resume=str(source)).resumed() as start:
        folder = f"--output_dir {run.folder}"
        assert (
            start.going_on
            == f"the same command with {folder} --resume auto in place of its --resume goes on"
        )
    with run.given(output_dir=tmp_path / "new", resume="never").resumed() as start:
        assert (
            start.going_on == "the same command with --resume auto in place of its --resume goes on"
        )
