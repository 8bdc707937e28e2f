"""Started by what is no launcher of torch's, or as if by one: joined, alone, or refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.model_files import ROOT
from tests.support.ports import free_port
from tests.support.tiny_runs import (
    deepspeed_json,
    merged,
    of_one_thread,
    started,
    write_json,
    write_model,
    write_rows,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_model(folder / "model")
    write_rows(folder / "rows.json")
    write_json(folder / "ds.json", deepspeed_json())
    return folder


def begin(sound: Path, folder: Path, *argv: str | Path, **variables: str) -> subprocess.Popen[str]:
    """Start a short training with the folder `folder` as the working one."""
    options = {"deepspeed": "ds.json", "model": "model", "data": "rows.json"}
    given = [word for name, file in options.items() for word in (f"--{name}", str(sound / file))]
    more = [str(word) for word in argv if word != "--help"]
    words = merged([*given, "--max_steps", "2"], more) + (["--help"] if "--help" in argv else [])
    command = [sys.executable, ROOT / "launcher/train.py", *words]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        env=of_one_thread() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(*runs: subprocess.Popen[str], status: int = 0) -> list[tuple[str, str]]:
    """What each printed, once all have ended so."""
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [status] * len(runs), said
    assert not any("Traceback" in stream for streams in said for stream in streams), said
    return said


def tasks(rank: str, local: str, size: str, more: dict[str, str]) -> list[dict[str, str]]:
    """What a launcher with these names would tell each of two processes."""
    return [{rank: str(number), local: str(number), size: "2", **more} for number in (0, 1)]


SRUN = tasks(
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
    {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"},
)
OPEN_MPI = tasks(
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": f"prterun-{os.getpid()}@1"},
)
MPICH = tasks(
    *("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    {"MPI_LOCALNRANKS": "2", "MASTER_PORT": str(free_port())},
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "of_each",
    [
        pytest.param(SRUN, id="srun"),
        pytest.param(OPEN_MPI, id="Open MPI", marks=pytest.mark.long),
        pytest.param(MPICH, id="MPICH", marks=pytest.mark.long),
    ],
)
def test_processes_started_together_are_one_run(
    of_each: list[dict[str, str]], sound: Path, tmp_path: Path
) -> None:
    ended(*(begin(sound, tmp_path, "--output_dir", "out", **said) for said in of_each))
    assert json.loads((tmp_path / "out/run.json").read_text())["topology"]["world_size"] == 2
    assert json.loads((tmp_path / "out/summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.long
def test_accelerate_starts_one_run(sound: Path, tmp_path: Path) -> None:
    """It runs torchrun's agent within itself: a launcher by another name. Its `--cpu` starts one
    process, whatever number it is given."""
    accelerate = Path(sys.executable).parent / "accelerate"
    words = [
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
    ]
    words += ["no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    words += [str(ROOT / "launcher/train.py"), "--max_steps", "40", "--epochs", "99"]
    words += ["--deepspeed", str(sound / "ds.json"), "--model", str(sound / "model")]
    words += ["--data", str(sound / "rows.json"), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        [accelerate, *words],
        cwd=tmp_path,
        env=of_one_thread(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/run.json").read_text())["topology"]["world_size"] == 2
    assert json.loads((tmp_path / "out/summary.json").read_text())["steps"] == 40


TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, marks=pytest.mark.long),
        pytest.param(
            {"WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}, marks=pytest.mark.long
        ),
        pytest.param({"TORCHELASTIC_RUN_ID": "x"}, marks=pytest.mark.long),
        TORCHRUN,
    ],
    ids=["no address", "only a size", "one mark of torchrun", "all that torchrun sets"],
)
def test_a_world_of_one_needs_nobody(
    variables: dict[str, str], sound: Path, tmp_path: Path
) -> None:
    """No address, no free port, no launcher that lives."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = {"MASTER_PORT": str(taken.getsockname()[1])} if variables is TORCHRUN else {}
        steps = ["--max_steps", "60", "--epochs", "99"]  # a launcher is looked at every second
        run = begin(sound, tmp_path, "--output_dir", "out", *steps, **variables, **port)
        ended(run)
    assert json.loads((tmp_path / "out/summary.json").read_text())["steps"] == 60


@pytest.mark.slow
def test_tasks_that_would_train_alone_are_refused(sound: Path, tmp_path: Path) -> None:
    """RANK of a batch script's own process reaches both."""
    rank = {"RANK": "0", "WORLD_SIZE": "1"}
    runs = [begin(sound, tmp_path, "--output_dir", "out", **said, **rank) for said in SRUN]
    for _, err in ended(*runs, status=2):
        (line,) = (line for line in err.splitlines() if line.startswith("error: "))
        assert "srun started 2 processes" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.long
def test_runs_of_one_second_have_folders_of_their_own(sound: Path, tmp_path: Path) -> None:
    ended(*(begin(sound, tmp_path) for _ in range(3)))
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 3
    for folder in folders:
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_help_is_printed_once(launcher: str) -> None:
    done = started(launcher, "launcher/train.py", "--help", ranks=2)  # type: ignore[arg-type]
    assert done.returncode == 0
    assert done.stdout.count("--hang_timeout") == 1


def test_help_of_a_second_task_is_silent(sound: Path, tmp_path: Path) -> None:
    first, second = ended(*(begin(sound, tmp_path, "--help", **said) for said in SRUN))
    assert "--hang_timeout" in first[0] and second == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("library", ["_psutil", "libtorch_cpu", "_sentencepiece"])
def test_ctrl_c_among_the_imports(library: str, sound: Path, tmp_path: Path) -> None:
    """Once `library` is loaded and more is to come."""
    run = begin(sound, tmp_path)
    deadline = time.monotonic() + 120
    while library not in Path(f"/proc/{run.pid}/maps").read_text():
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    ended(run, status=130)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_ctrl_c_while_others_are_awaited(sound: Path, tmp_path: Path) -> None:
    rank = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    with socket.create_server(("127.0.0.1", 0)) as first:  # it never answers
        run = begin(sound, tmp_path, **rank, MASTER_PORT=str(first.getsockname()[1]))
        first.settimeout(120)
        first.accept()
        run.send_signal(signal.SIGINT)
        ended(run, status=130)


@pytest.mark.slow
@pytest.mark.long
def test_two_runs_on_one_port(sound: Path, tmp_path: Path) -> None:
    """One of them trains; the other says what is wrong, and leaves that one alone."""
    runs = two_runs(sound, tmp_path, "--master_port", str(free_port()))
    said = [run.communicate(timeout=300) for run in runs]
    assert sum(run.returncode == 0 for run in runs) == 1, said
    lost = next(number for number, run in enumerate(runs) if run.returncode != 0)
    assert "another run has this port; give another with --master_port" in said[lost][1]
    assert not any("Traceback" in stream for streams in said for stream in streams), said
    assert json.loads((tmp_path / "ab"[1 - lost] / "summary.json").read_text())["steps"] == 2


@pytest.mark.long
@pytest.mark.slow
def test_two_runs_on_the_port_that_deepspeed_gives(sound: Path, tmp_path: Path) -> None:
    """It gives 29500 to both, and their ranks meet elsewhere."""
    runs = two_runs(sound, tmp_path)
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    for name in "ab":
        assert json.loads((tmp_path / name / "summary.json").read_text())["steps"] == 2


def two_runs(sound: Path, folder: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Two runs of two ranks each, begun at once under `deepspeed` with the options `words`."""
    deepspeed = [Path(sys.executable).parent / "deepspeed", "--num_gpus", "2", *words]
    options = ["--deepspeed", sound / "ds.json", "--model", sound / "model"]
    options += ["--data", sound / "rows.json", "--max_steps", "2", "--output_dir"]
    return [
        subprocess.Popen(
            list(map(str, [*deepspeed, ROOT / "launcher/train.py", *options, name])),
            cwd=folder,
            env=of_one_thread(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
