"""What is not gone on with, and why: one line for each reason, status 2, before weights load."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama.notes import LOG
from llama.settings import TrainOptions
from llama.settings.options import run_command
from llama.tokenizer.built_in_templates import CHATML, CHATML_BEGIN
from llama.train.loop import train
from tests.support.model_files import write_huggingface
from tests.support.resume_case import STEPS, Case, settings
from tests.support.tiny_runs import CONFIG, launched, merged, write_json, write_rows
from tests.support.tokenizer_files import write_tokenizer_json

pytestmark = pytest.mark.slow


class ReachedError(Exception):
    """The weights would load now: nothing was refused."""


class Trial:
    """`train` up to the weights, on copies of two runs: one stopped at step 3, and one finished."""

    def __init__(self, case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.case, self.folder, self._capsys = case, folder, capsys
        for name in ("stopped", "finished"):
            shutil.copytree(case.out(name), folder / name)
        self.out = folder / "stopped"

    def run(self, *more: str, name: str = "stopped", kind: str = "zero1-fp32") -> int:
        argv = [*self.case.argv(name, settings(kind)), "--output_dir", str(self.folder / name)]
        argv = merged(argv, more)
        self._capsys.readouterr()
        LOG.end()  # each of these would be a process by itself
        return run_command(train, TrainOptions, "train.py", "", argv)

    def refusals(self, *more: str, **changes: Any) -> list[str]:
        before = _files(self.folder)
        assert self.run(*more, **changes) == 2
        assert _files(self.folder) == before, "a refused run has changed something"
        lines = self._capsys.readouterr().err.splitlines()
        return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]

    def said(self, *more: str, **changes: Any) -> str:
        """What is said by a run that gets as far as the weights."""
        with pytest.raises(ReachedError):
            self.run(*more, **changes)
        return self._capsys.readouterr().err


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    case = Case(tmp_path_factory.mktemp("refusals"))
    every = ("--save_every", "1", "--keep", "2")
    case.add("stopped", settings("zero1-fp32"), 3, *every)
    case.add("finished", settings("zero1-fp32"), None, *every)
    case.go()
    return case


@pytest.fixture
def trial(
    case: Case,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Trial:
    def loaded(*_: Any, **__: Any) -> None:
        raise ReachedError

    monkeypatch.setattr("llama.assembly.model.load_weights", loaded)
    # a logger outlives the stream that stands for standard error in one test
    monkeypatch.setattr("llama.engine.backend._log_to_stderr", lambda: None)
    return Trial(case, tmp_path, capsys)


def test_the_same_settings_are_gone_on_with(trial: Trial) -> None:
    """Else every refusal below might be of something else."""
    said = trial.said()
    assert f"going on from {trial.out}/checkpoints/step-3: step 3 of {STEPS}" in said
    assert "refused" not in said and "bit for bit" not in said
    assert sorted(path.name for path in (trial.out / "checkpoints").iterdir()) == [
        "step-2",
        "step-3",
    ]


def another_model(trial: Trial) -> tuple[str, ...]:
    write_huggingface(trial.folder / "model", CONFIG, seed=1)
    write_tokenizer_json(trial.folder / "model")
    return "--model", str(trial.folder / "model")


def other_rows(trial: Trial) -> tuple[str, ...]:
    return "--data", str(write_rows(trial.folder / "rows.json", 15))


def another_tokenizer(trial: Trial) -> tuple[str, ...]:
    """The same in another spelling, of which nobody can say what it does."""
    path = write_tokenizer_json(trial.folder / "tokenizer")
    with path.open("a") as file:
        file.write("\n")
    return "--tokenizer", str(path)


def another_template(trial: Trial) -> tuple[str, ...]:
    (path := trial.folder / "chat.jinja").write_text(CHATML_BEGIN + CHATML)
    return "--template", str(path)


MADE: dict[str, tuple[Callable[[Trial], tuple[str, ...]], str]] = {
    "model": (another_model, "--model: not what the run began with"),
    "rows": (other_rows, "--data: not what the run began with"),
    "tokenizer": (another_tokenizer, "--tokenizer: not what the run began with"),
    "template": (another_template, "template: the run began with 'chatml'"),
}


@pytest.mark.parametrize("what", MADE)
def test_another_file_is_refused(what: str, trial: Trial) -> None:
    make, expected = MADE[what]
    *reasons, advice = trial.refusals(*make(trial))
    assert len(reasons) == 1 and reasons[0].startswith(expected)
    assert "step-3: is of a run with other settings" in advice


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--eval_data", "-"), "--eval_data: not what the run began with"),
        (("--seq_len", "128"), "seq_len: the run began with 96, and is now given 128"),
        (("--pack", "false"), "pack: the run began with True"),
        (("--seed", "1"), "seed: the run began with 0, and is now given 1"),
        (("--lora.rank", "8"), "lora.rank: the run began with 16, and is now given 8"),
        (("--lora.alpha", "8"), "lora.alpha: the run began with 32.0"),
        (("--lora.dropout", "0"), "lora.dropout: the run began with 0.1"),
        (("--lora.targets", "wq"), "lora.targets: the run began with 'wo,wq'"),
        (("--override", "optimizer.params.lr=1e-4"), "optimizer.params.lr: the run began with"),
        (("--override", "optimizer.type=Adam"), "optimizer.type: the run began with 'AdamW'"),
        (("--override", "gradient_clipping=0.5"), "gradient_clipping: the run began with 1.0"),
        (("--override", "scheduler.params.warmup_num_steps=2"), "scheduler.params.warmup_num_"),
        (("--override", "gradient_accumulation_steps=3"), "rows of a step: the run began with 2"),
    ],
)
def test_another_setting_is_refused(more: tuple[str, ...], expected: str, trial: Trial) -> None:
    *reasons, advice = trial.refusals(*more)
    assert any(reason.startswith(expected) for reason in reasons), reasons
    assert "step-3: is of a run with other settings" in advice


def test_another_precision_is_refused(trial: Trial) -> None:
    reasons = trial.refusals(kind="zero1-bf16")
    assert any(reason.startswith("precision: the run began with 'fp32'") for reason in reasons)


def test_all_differences_are_said_at_once(trial: Trial) -> None:
    assert len(trial.refusals("--seed", "1", "--lora.rank", "8", "--seq_len", "128")) >= 4


def test_an_end_that_is_past_is_refused(trial: Trial) -> None:
    (reason,) = trial.refusals("--max_steps", "2")
    assert "step 3 is past the end, 2 steps" in reason


def test_a_raised_end_is_gone_on_to(trial: Trial) -> None:
    said = trial.said("--epochs", "3", name="finished")
    assert "follows the schedule of 12" in said


def test_never_refuses_a_folder_that_holds_a_run(trial: Trial) -> None:
    (reason,) = trial.refusals("--resume", "never")
    assert "already holds a run" in reason
    (trial.out / "run.json").unlink()
    (reason,) = trial.refusals("--resume", "never")
    assert "already holds a run" in reason


def spoil(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_newest_whole_one_is_found_and_the_others_are_named(trial: Trial) -> None:
    spoil(trial.out / "checkpoints" / "step-3")
    said = trial.said()
    refused = [line for line in said.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 1 and "step-3/optimizer.safetensors: damaged" in refused[0]
    assert "step-2: step 2 of" in said


def test_a_run_of_which_nothing_is_whole_is_not_begun_again(trial: Trial) -> None:
    for step in (2, 3):
        spoil(trial.out / "checkpoints" / f"step-{step}")
    *reasons, advice = trial.refusals()
    assert len(reasons) == 2 and all("damaged" in reason for reason in reasons)
    assert "none of the run's checkpoints can be used" in advice


def test_a_run_that_was_killed_before_its_first_save_begins_again(trial: Trial) -> None:
    shutil.rmtree(trial.out / "checkpoints")
    (trial.out / "checkpoints" / ".step-1.partial").mkdir(parents=True)
    assert "ended before its first checkpoint: starting at step 0" in trial.said()
    assert not list((trial.out / "checkpoints").iterdir())


def test_an_adapter_without_its_checkpoints_is_not_overwritten(trial: Trial) -> None:
    shutil.rmtree(trial.folder / "finished" / "checkpoints")
    (reason,) = trial.refusals(name="finished")
    assert "holds the adapter of a run whose checkpoints are gone" in reason


def test_a_finished_run_says_so(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(trial.folder)
    assert trial.run("--json", "true", name="finished") == 0
    said = capsys.readouterr()
    assert "is finished; to go on, raise --epochs or --max_steps" in said.err
    assert json.loads(said.out.splitlines()[-1])["status"] == "finished"
    assert _files(trial.folder) == before


def test_a_start_that_fails_as_the_weights_load_leaves_the_run_as_it_was(trial: Trial) -> None:
    """Of a finished run that was to go on, all it knew of itself is there still."""
    before = _files(trial.folder)
    trial.said("--epochs", "3", name="finished")
    after = {name: text for name, text in _files(trial.folder).items() if "log" not in name}
    assert after == {name: text for name, text in before.items() if "log" not in name}


def test_a_folder_that_was_asked_for(trial: Trial) -> None:
    """The run's own folder is the default; from an older one it goes on elsewhere."""
    newest, older = (trial.out / "checkpoints" / f"step-{step}" for step in (3, 2))
    assert "step-3: step 3 of" in trial.said("--resume", str(newest), "--output_dir", "-")
    (reason,) = trial.refusals("--resume", str(older), "--output_dir", "-")
    assert "is not the newest of its run" in reason
    branch = str(trial.folder / "branch")
    assert "step-2: step 2 of" in trial.said("--resume", str(older), "--output_dir", branch)
    assert not (trial.folder / "branch" / "metrics.jsonl").exists(), "no run has begun there yet"


def test_a_folder_that_is_no_checkpoint(trial: Trial) -> None:
    (reason,) = trial.refusals("--resume", str(trial.out / "checkpoints" / "step-33"))
    assert "does not exist" in reason and "did you mean" in reason
    (reason,) = trial.refusals("--resume", str(trial.out))
    assert "is a run, not a checkpoint" in reason
    (reason,) = trial.refusals("--resume", "atuo")
    assert "it takes auto, never, or a folder" in reason
    spoil(newest := trial.out / "checkpoints" / "step-3")
    (reason,) = trial.refusals("--resume", str(newest))
    assert "damaged" in reason


def test_into_another_run(trial: Trial) -> None:
    other = str(trial.folder / "finished")
    newest = str(trial.out / "checkpoints" / "step-3")
    (reason,) = trial.refusals("--resume", newest, "--output_dir", other)
    assert "holds another run" in reason


def test_a_run_that_is_still_going(trial: Trial) -> None:
    with (trial.out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (reason,) = trial.refusals()
        assert "is being written by another process" in reason
    trial.said()


@pytest.mark.long
def test_every_rank_refuses_alike(case: Case, tmp_path: Path) -> None:
    """The other rank cannot see the run's folder; it ends with the same status, saying nothing of
    its own."""
    shutil.copytree(case.out("stopped"), tmp_path / "stopped")
    two = write_json(tmp_path / "two.json", settings("zero1-fp32", 1))
    argv = case.argv("x", {})
    argv = merged(argv, ("--deepspeed", str(two), "--output_dir", str(tmp_path / "stopped")))
    done = launched("deepspeed", "train.py", *argv, "--seed", "5", ranks=2)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines[0] == "error: seed: the run began with 0, and is now given 5", done.stderr
    assert len(lines) == 2
