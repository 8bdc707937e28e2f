"""Processes of the GPU tests, several at a time: most of what each does is to start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from llama.data.rows import bundled
from tests.support.model_files import ROOT
from tests.support.ports import free_port
from tests.support.tiny_runs import environment
from tests.support.tokenizer_files import write_sentencepiece

TIMEOUT = 420
"""Seconds until children that run together are given up."""

Done = subprocess.CompletedProcess[str]
K = TypeVar("K")


def with_launcher(launcher: str) -> list[str]:
    """How one process is started: by the launcher's command where it is installed, else by its
    module (packages unpacked into a folder have no command on the path)."""
    modules = {"torchrun": "torch.distributed.run", "deepspeed": "deepspeed.launcher.runner"}
    beside = shutil.which(launcher, path=str(Path(sys.executable).parent))
    command = beside or shutil.which(launcher)
    start = [command] if command else [sys.executable, "-m", modules[launcher]]
    count = {"torchrun": "--nproc_per_node", "deepspeed": "--num_gpus"}[launcher]
    return [*start, count, "1", "--master_port", str(free_port())]


def run_together(
    commands: Mapping[K, Sequence[str | Path]], hide_gpu: Sequence[K] = ()
) -> dict[K, Done]:
    """Start every command from the project's root, wait for all; `Done` of each by its key."""
    children = {
        key: subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment() | ({"CUDA_VISIBLE_DEVICES": ""} if key in hide_gpu else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for key, command in commands.items()
    }
    deadline = time.monotonic() + TIMEOUT
    return {key: _finished(child, deadline) for key, child in children.items()}


def train_together(
    folder: Path,
    options: Sequence[str],
    each: Mapping[str, tuple[Sequence[str | Path], Sequence[str]]],
) -> dict[str, tuple[Done, Path]]:
    """Runs of `launcher/train.py` on the bundled rows, with a tokenizer that is made here and
    `options`: of each how it is started and its own options; gives the process and its folder."""
    tokenizer = write_sentencepiece(folder / "tokenizer.model")
    rows = ("--data", bundled("instructions_200"), "--template", "alpaca")
    common = ("--tokenizer", tokenizer, *rows, *options, "--json")
    commands = {
        name: [*start, "launcher/train.py", *common, *own, "--output_dir", folder / name]
        for name, (start, own) in each.items()
    }
    return {name: (done, folder / name) for name, done in run_together(commands).items()}


def _finished(child: subprocess.Popen[str], deadline: float) -> Done:
    try:
        out, errors = child.communicate(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGTERM)  # a launcher passes it on to what it started
        out, errors = child.communicate(timeout=30)
        errors += f"\ngiven up after {TIMEOUT} s"
    return subprocess.CompletedProcess(child.args, child.returncode, out, errors)
