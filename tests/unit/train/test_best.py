"""The best of a run: which step it is, and what lies on the disk of it after any end."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama.checkpoint import RunState, Store
from llama.errors import TrainingError
from llama.files.atomic import remove_leftovers, write_folder
from llama.methods.about import About
from llama.methods.lora import LoRAMethod
from llama.parallel.mesh import SINGLE, Mesh
from llama.train import best
from llama.train.best import Best, heard, is_worn_out
from llama.train.start.resume import Start
from tests.support.failing_calls import killed_at, operations
from tests.support.origin import about
from tests.unit.checkpoint.checkpoint_case import ADAPTER, checkpoint

ALONE = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]


def told(*losses: float) -> RunState:
    """The state of a run whose steps 1, 2, ... had these held-out losses."""
    state = RunState()
    for step, loss in enumerate(losses, start=1):
        state.evaluated = step
        lower = heard(state, loss)
        assert lower == (state.best_step == step)
    return state


@pytest.mark.parametrize(
    ("losses", "step", "since"),
    [
        ((3.0, 2.0, 2.5), 2, 1),
        ((2.0, 2.0, 2.0), 1, 2),
        ((math.nan, 2.0, math.nan), 2, 1),
        ((math.inf, math.nan), 0, 2),
        ((-math.inf, 5.0), 2, 0),
        ((2.0, 3.0, 1.0, 4.0, 0.5), 5, 0),
    ],
    ids=["lowest", "of equals the earlier", "NaN never", "none", "infinity never", "again"],
)
def test_which_step_is_the_best(losses: tuple[float, ...], step: int, since: int) -> None:
    state = told(*losses)
    assert (state.best_step, state.since_best) == (step, since)
    assert not step or state.best_loss == losses[step - 1]


def test_when_a_run_is_worn_out() -> None:
    state = told(2.0, 3.0, math.nan)
    assert [is_worn_out(state, after) for after in (None, 1, 2, 3)] == [False, True, True, False]
    assert not is_worn_out(RunState(), 1)


# On the disk


class Writes:
    """A method whose result says which step it is of."""

    RESULT, LAST = LoRAMethod.RESULT, LoRAMethod.LAST

    def write(self, engine: Any, folder: Path, tokenizer: Path | None, about: About) -> list[str]:
        assert about.step == engine.steps
        write_folder(folder, {"step": str(about.step).encode()})
        return [f"{folder} holds no tokenizer"]

    def put_back(self, engine: Any, folder: Path) -> bool:
        return True


@dataclass
class Run:
    """One that only evaluates: its folder, its state, and the loss of each step."""

    folder: Path
    state: RunState = field(default_factory=RunState)
    source: Path | None = None
    keeps: bool = True

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "checkpoints")
        self.engine = SimpleNamespace(steps=self.state.evaluated, mesh=ALONE)
        saver: Any = SimpleNamespace(engine=self.engine, store=self.store, wait=lambda: None)
        options = SimpleNamespace(best=self.keeps, tokenizer=None, early_stop=None)
        inputs: Any = SimpleNamespace(options=options, method=Writes(), held_out=object())
        self.best = Best(Start(self.folder, run=self.state, source=self.source), inputs, saver)

    def evaluated(self, step: int, loss: float) -> list[str]:
        self.engine.steps = self.state.evaluated = step
        return self.best.after(loss, about(step))

    def save(self, step: int, keep: int = 9) -> Path:
        made = checkpoint(step)
        made.run = self.state
        return self.store.save(made, ADAPTER, keep)

    @property
    def kept(self) -> list[str]:
        return sorted(os.listdir(self.folder / "best"))

    def of(self, name: str) -> int | None:
        """The step that the folder of that name is of."""
        path = self.folder / name / "step"
        return int(path.read_bytes()) if path.exists() else None


def test_the_result_is_of_the_best_whatever_comes_after(tmp_path: Path) -> None:
    run = Run(tmp_path)
    said = [run.evaluated(step, loss) for step, loss in ((2, 3.0), (4, 2.0), (6, 2.5))]
    assert said == [[f"{tmp_path}/adapter holds no tokenizer"], *[said[0], []]]
    assert (run.of("adapter"), run.kept) == (4, ["step-4"])
    assert (tmp_path / "adapter" / "step").samefile(tmp_path / "best" / "step-4" / "step")
    run.best.at_the_end(about(run.engine.steps))
    assert (run.of("adapter"), run.of("adapter_last"), run.best.kept_step) == (4, 6, 4)


def test_a_result_comes_after_the_checkpoint_that_is_being_written(tmp_path: Path) -> None:
    """Killed in between the folder would hold a result of no run, and no start would take it."""
    run, found = Run(tmp_path), []

    def wait() -> None:
        found.append(run.of("adapter"))
        run.save(2)

    run.best._saver.wait = wait  # type: ignore[method-assign]
    run.evaluated(2, 3.0)
    assert found[0] is None and run.of("adapter") == 2


def test_where_the_last_is_the_best_it_is_written_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.evaluated(2, 3.0)
    assert run.best.at_the_end(about(run.engine.steps)) == []
    assert (run.of("adapter"), run.of("adapter_last")) == (2, 2)
    assert (tmp_path / "adapter_last" / "step").samefile(tmp_path / "adapter" / "step")


@pytest.mark.parametrize(("keeps", "loss"), [(False, 1.0), (True, math.nan)])
def test_where_there_is_no_best_the_result_is_the_last(
    keeps: bool, loss: float, tmp_path: Path
) -> None:
    run = Run(tmp_path, keeps=keeps)
    run.evaluated(2, loss)
    run.engine.steps = 3
    run.best.at_the_end(about(run.engine.steps))
    assert (run.of("adapter"), run.best.kept_step, os.listdir(tmp_path)) == (3, 3, ["adapter"])


def test_what_a_checkpoint_knows_as_the_best_stays_as_long_as_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.evaluated(2, 3.0)
    own = run.save(3).rename(tmp_path / "checkpoints" / "a name of the user's")
    run.evaluated(4, 2.0)
    run.save(5)
    run.evaluated(6, 1.0)
    assert run.kept == ["step-2", "step-4", "step-6"]
    own.rename(tmp_path / "elsewhere")
    run.save(7, keep=1)
    run.evaluated(8, 0.5)
    assert run.kept == ["step-6", "step-8"]
    run.save(9, keep=1)
    run.best.at_the_end(about(8))
    assert run.kept == ["step-8"]


def test_a_checkpoint_before_the_newest_best_is_gone_on_from(tmp_path: Path) -> None:
    """The result is again what it was there, and what no checkpoint knows of is removed."""
    run = Run(tmp_path)
    run.evaluated(2, 3.0)
    run.save(3)
    run.evaluated(4, 2.0)
    run.best.at_the_end(about(run.engine.steps))
    state = RunState(evaluated=2, best_step=2, best_loss=3.0)
    again = Run(tmp_path, state)
    assert again.best.take_up() == []
    assert (again.of("adapter"), again.kept) == (2, ["step-2"])
    assert not (tmp_path / "adapter_last").exists()


def test_another_run_s_checkpoint_brings_its_best_along(tmp_path: Path) -> None:
    run = Run(tmp_path / "one")
    run.evaluated(2, 3.0)
    saved = run.save(3)
    other = Run(tmp_path / "other", RunState(evaluated=2, best_step=2, best_loss=3.0), saved)
    other.folder.mkdir()
    assert other.best.take_up() == []
    assert (other.of("adapter"), other.kept, other.state.best_step) == (2, ["step-2"], 2)


def test_a_best_that_is_gone_is_told_and_forgotten(tmp_path: Path) -> None:
    run = Run(tmp_path, RunState(evaluated=5, best_step=2, best_loss=3.0, since_best=3))
    (line,) = run.best.take_up()
    assert line.startswith(f"what came of step 2, the best so far, is no longer in {tmp_path}/best")
    assert (run.state.best_step, run.state.since_best) == (0, 0)
    run.evaluated(6, 4.0)
    assert run.of("adapter") == 6


def interrupted(folder: Path) -> Run:
    """A run whose step 2 was the best, with a checkpoint that says so, at step 4."""
    run = Run(folder)
    run.evaluated(2, 3.0)
    run.save(3)
    run.engine.steps = run.state.evaluated = 4
    return run


def test_a_kill_at_every_operation_of_keeping_leaves_a_best(tmp_path: Path) -> None:
    """And once the run is taken up again, the one that its checkpoint knows."""
    counted = interrupted(tmp_path / "counted")
    count = operations(lambda: counted.best.after(2.0, about(counted.engine.steps)))
    of_a_killed_run = []
    for index in range(count):
        run = interrupted(tmp_path / str(index))
        killed_at(index, lambda run=run: run.best.after(2.0, about(run.engine.steps)))
        remove_leftovers(run.folder, lambda name: name == "adapter")
        of_a_killed_run.append(run.of("adapter"))
        again = Run(run.folder, RunState(evaluated=2, best_step=2, best_loss=3.0))
        assert again.best.take_up() == []
        assert (again.of("adapter"), again.kept) == (2, ["step-2"])
        again.evaluated(4, 2.0)
        assert (again.of("adapter"), again.kept) == (4, ["step-2", "step-4"])
        assert sorted(os.listdir(run.folder)) == ["adapter", "best", "checkpoints"]
    assert {*of_a_killed_run} == {2, 4} and of_a_killed_run == sorted(of_a_killed_run)


def test_a_kill_at_every_operation_of_taking_up(tmp_path: Path) -> None:
    def killed(folder: Path) -> Run:
        run = interrupted(folder)
        run.best.after(2.0, about(run.engine.steps))
        run.best.at_the_end(about(run.engine.steps))
        return Run(folder, RunState(evaluated=2, best_step=2, best_loss=3.0))

    counted = killed(tmp_path / "counted")
    for index in range(operations(counted.best.take_up)):
        run = killed(tmp_path / str(index))
        killed_at(index, run.best.take_up)
        remove_leftovers(run.folder, lambda name: name in ("adapter", "adapter_last"))
        assert run.best.take_up() == []
        assert (run.of("adapter"), run.kept) == (2, ["step-2"])
        assert sorted(os.listdir(run.folder)) == ["adapter", "best", "checkpoints"]


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(best, "link_folder", full)
    with pytest.raises(TrainingError, match="adapter: the best cannot be written: No space left"):
        run.best.after(2.0, about(run.engine.steps))
    assert run.of("adapter") == 2
