"""What a user may get wrong: each problem one line, status 2, nothing written, no weights read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama.config import EvaluateOptions, GenerateOptions, TrainOptions
from llama.evaluate import evaluate
from llama.generate import generate
from llama.options import run_command
from llama.train.loop import train
from tests.tiny_runs import (
    Launcher,
    deepspeed_json,
    launched,
    write_json,
    write_model,
    write_rows,
)
from tests.tokenizer_files import byte_description, write_tokenizer_json


class Setting:
    """Sound arguments of `train`, to be spoilt one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = write_model(folder / "model")
        self.out = folder / "out"
        self.sound = {
            "deepspeed": str(write_json(folder / "ds.json", deepspeed_json())),
            "model": str(self.model),
            "data": str(write_rows(folder / "rows.json")),
            "output_dir": str(self.out),
            "template": "chatml",
        }

    def arguments(self, **changes: Any) -> list[str]:
        chosen = {name: str(value) for name, value in (self.sound | changes).items()}
        return [part for name, value in chosen.items() for part in (f"--{name}", value)]


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """No weights may load: what would load them fails."""

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are being loaded")

    monkeypatch.setattr("llama.inference.load_weights", loaded)
    return Setting(tmp_path)


@pytest.fixture
def refused(setting: Setting, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that `train` refuses its arguments with, `error: ` taken off."""

    def run(*more: str, **changes: Any) -> list[str]:
        argv = [*setting.arguments(**changes), *more]
        capsys.readouterr()
        assert run_command(train, TrainOptions, "train.py", "", argv) == 2
        said = capsys.readouterr()
        assert said.out == "" and not setting.out.exists()
        return errors(said.err)

    return run


def errors(text: str) -> list[str]:
    """Every line of `text` must be an error."""
    lines = text.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), text
    return [line.removeprefix("error: ") for line in lines]


Refused = Callable[..., list[str]]


def test_the_sound_arguments_get_as_far_as_the_weights(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every refusal below might be of something else."""
    reached = []

    def stop() -> None:
        reached.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr("llama.train.engine.start_processes", stop)
    argv = setting.arguments()
    assert run_command(train, TrainOptions, "train.py", "", argv) == 130
    assert reached


def test_an_unknown_option_names_the_nearest(refused: Refused) -> None:
    (problem,) = refused("--seqlen", "64")
    assert problem.startswith("--seqlen: ") and "--seq_len" in problem


def test_a_missing_file(refused: Refused, setting: Setting) -> None:
    (problem,) = refused(data=setting.folder / "row.json")
    assert "--data: " in problem and "does not exist" in problem and "rows.json" in problem
    (problem,) = refused(deepspeed=setting.folder / "absent.json")
    assert "absent.json" in problem and "does not exist" in problem
    (problem,) = refused(model=setting.folder / "modell")
    assert "--model" in problem and f"did you mean {setting.model}?" in problem


def test_an_unknown_key_of_the_json(refused: Refused, setting: Setting) -> None:
    document = deepspeed_json()
    document["optimizer"]["params"]["learning_rate"] = 1e-3
    document["gradient_clip"] = 1.0
    path = write_json(setting.folder / "wrong.json", document)
    problems = refused(deepspeed=path)
    assert len(problems) == 2
    assert any("gradient_clip: unknown key; did you mean gradient_clipping?" in p for p in problems)
    assert any("optimizer.params.learning_rate: unknown key" in p for p in problems)
    (problem,) = refused("--override", "optimizer.params.lrr=1")
    assert "optimizer.params.lrr" in problem and "optimizer.params.lr" in problem


def test_malformed_rows_with_their_numbers(refused: Refused, setting: Setting) -> None:
    rows = json.loads(Path(setting.sound["data"]).read_text())
    rows[2] = {"prompt": "a"}
    rows[6] = "text"
    path = write_json(setting.folder / "malformed.json", rows)
    missing, kind = refused(data=path)
    assert "row 3" in missing and "'completion' is missing" in missing
    assert "row 7" in kind and "not an object" in kind
    lines = [json.dumps(row) for row in rows[:2]] + ["{oops"]
    (path := setting.folder / "malformed.jsonl").write_text("\n".join(lines))
    (problem,) = refused(data=path)
    assert "line 3" in problem and "malformed JSON" in problem


def test_both_data_files_are_judged_at_once(refused: Refused, setting: Setting) -> None:
    path = write_json(setting.folder / "malformed.json", [{"prompt": "a"}])
    problems = refused(data=path, eval_data=write_json(setting.folder / "empty.json", []))
    assert [("malformed.json" in p, "empty.json" in p) for p in problems] == [
        (True, False),
        (False, True),
    ]


def test_a_target_that_matches_nothing(refused: Refused) -> None:
    (problem,) = refused("--lora.targets", "wq,wx")
    assert problem.startswith("--lora.targets: ") and "'wx'" in problem and "w1" in problem


def test_an_output_that_cannot_be_written(refused: Refused, setting: Setting) -> None:
    """By root too: a file stands where a folder is to be made."""
    (setting.folder / "file").write_text("")
    (problem,) = refused(output_dir=setting.folder / "file" / "out")
    assert problem.startswith("--output_dir: ") and "is a file" in problem


def test_an_output_that_holds_another_run(refused: Refused, setting: Setting) -> None:
    (other := setting.folder / "other").mkdir()
    (other / "run.json").write_text("{}")
    (problem,) = refused("--resume", "never", output_dir=other)
    assert "already holds a run" in problem


def test_a_degree_that_does_not_divide(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = refused(tensor_parallel=2)
    assert problem.startswith("--tensor_parallel: 1 process ")
    monkeypatch.setenv("WORLD_SIZE", "8")
    (problem,) = refused(tensor_parallel=8)
    assert "does not divide the model's kv heads 4" in problem and "1, 2, 4 would" in problem


def test_a_tokenizer_of_another_model(refused: Refused, setting: Setting) -> None:
    description = byte_description()
    vocabulary = description["model"]["vocab"]
    vocabulary |= {f"token {i}": len(vocabulary) + i for i in range(8)}
    (problem,) = refused(tokenizer=write_tokenizer_json(setting.folder / "larger", description))
    assert "ids up to 268" in problem and "belongs to another model" in problem


def test_every_mistake_at_once(refused: Refused, setting: Setting) -> None:
    problems = refused("--lora.rank", "0", "--override", "zero.stage=1", data="absent", epochs=0)
    assert len(problems) == 4


def test_generate_and_evaluate_refuse_alike(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(setting.model)]
    absent = str(setting.folder / "absent")
    for run, cls, argv in (
        (generate, GenerateOptions, [*model, "--prompt", "a", "--adapter", absent]),
        (generate, GenerateOptions, [*model, "--prompt", "a", "--temperature", "-1"]),
        (evaluate, EvaluateOptions, [*model, "--data", absent]),
        (evaluate, EvaluateOptions, [*model]),
    ):
        assert run_command(run, cls, "x.py", "", argv) == 2  # type: ignore[arg-type]
        said = capsys.readouterr()
        assert said.out == "" and len(errors(said.err)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "ranks"), [("python", 1), ("deepspeed", 2)])
def test_as_a_process_it_ends_with_2(launcher: Launcher, ranks: int, tmp_path: Path) -> None:
    """Nothing but the errors is ours; each is said once, however many ranks there are."""
    setting = Setting(tmp_path)
    argv = [*setting.arguments(data="absent"), "--lora.targets", "wx"]
    done = launched(launcher, "train.py", *argv, ranks=ranks)
    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "Traceback" not in said and not setting.out.exists()
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2, said


@pytest.mark.slow
def test_torchrun_says_it_too(tmp_path: Path) -> None:
    """torchrun's own status for a rank that failed is 1, and it reports what the rank's was."""
    setting = Setting(tmp_path)
    done = launched("torchrun", "train.py", *setting.arguments(), "--seqlen", "64")
    assert done.returncode == 1
    assert "error: --seqlen: " in done.stderr and "exitcode  : 2" in done.stderr
    assert not setting.out.exists()
