"""What the fault runs train: a tiny model, a checkpoint after every step, dropout and accumulation
on, some epochs, so that a run can be ended anywhere; and what each would have ended as."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.forked import Run, Spoil
from tests.support.tiny_runs import (
    deepspeed_json,
    merged,
    read_lines,
    write_json,
    write_model,
    write_rows,
)

Outcome = tuple[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Shape:
    """A run: its ranks, how they share the work, and its length."""

    ranks: int = 1
    tensor_parallel: int = 1
    zero_stage: int = 1
    epochs: int = 3
    method: str = "lora"
    is_evaluated: bool = False
    """Whether rows are held out, and the loss on them is taken after each step."""
    shard_base: bool = False

    @property
    def name(self) -> str:
        sizes = (self.ranks, self.tensor_parallel, self.zero_stage, self.epochs)
        more = "-evaluated" * self.is_evaluated + "-sharded-base" * self.shard_base
        return f"{self.method}-{'-'.join(map(str, sizes))}{more}"

    @property
    def steps(self) -> int:
        """Windows of 2 rows for each copy of the model; the last of an epoch is not full."""
        return self.epochs * math.ceil(ROWS * self.tensor_parallel / (2 * self.ranks))


ROWS = 11
ONE, TWO, SHARDED = Shape(), Shape(ranks=2), Shape(ranks=2, tensor_parallel=2)
PLAIN = Shape(zero_stage=0)
BASE = Shape(ranks=2, shard_base=True)
WHOLE = Shape(ranks=2, zero_stage=3, method="full")
"""Every parameter trains, and every rank writes its part of a checkpoint."""
EVALUATED = Shape(is_evaluated=True)
"""Each step is better than those before: the best is written anew after every one."""
TRAINS = {
    "lora": ("--lora.rank", "4", "--lora.dropout", "0.1"),
    "full": ("--method", "full"),
}
RESULTS = {"lora": "adapter/adapter_model.safetensors", "full": "model/model.safetensors"}
LONG, LONG_ALONE = Shape(ranks=2, epochs=60), Shape(epochs=15)
"""Long enough for a launcher to be met in the middle of it."""


class Setting:
    """Model, rows and settings in one folder, and the uninterrupted run of each shape."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_model(folder / "model")
        write_rows(folder / "rows.json", ROWS)
        self._expected: dict[Shape, Outcome] = {}
        self._seconds: dict[Shape, float] = {}

    def argv(self, shape: Shape, out: Path, *more: str) -> list[str]:
        settings = self.folder / f"ds-{shape.name}.json"
        if not settings.exists():
            write_json(settings, deepspeed_json(shape.zero_stage, 2))
        argv = [
            *("--deepspeed", str(settings), "--model", str(self.folder / "model")),
            *("--data", str(self.folder / "rows.json"), "--template", "chatml"),
            *("--seq_len", "64", "--pack", "false", *TRAINS[shape.method]),
            *("--tensor_parallel", str(shape.tensor_parallel), "--epochs", str(shape.epochs)),
            *("--save_every", "1", "--keep", "2", "--output_dir", str(out)),
        ]
        if shape.shard_base:
            argv += ["--shard_base", "true"]
        if shape.is_evaluated:
            argv += ["--eval_data", str(self.folder / "rows.json"), "--eval_every", "1"]
        return merged(argv, more)

    def start(self, shape: Shape, out: Path, *more: str, spoil: Spoil | None = None) -> Run:
        return Run(self.argv(shape, out, *more), out.with_suffix(".log"), shape.ranks, spoil)

    def finish(self, shape: Shape, out: Path) -> None:
        """Run, or go on with, `out` to its end."""
        with self.start(shape, out) as run:
            statuses = run.wait(180)
            assert statuses == [0] * shape.ranks, f"{statuses}\n{run.said}"

    def expected(self, shape: Shape) -> Outcome:
        """Of the run that nothing happens to, made twice: the second is not the first of its kind
        in this process, and tells how long one takes."""
        if shape not in self._expected:
            outcomes = []
            for time_ in ("first", "second"):
                out = self.folder / f"uninterrupted-{shape.name}-{time_}-{os.getpid()}"
                began = time.monotonic()
                self.finish(shape, out)
                self._seconds[shape] = time.monotonic() - began
                outcomes.append(outcome(out, shape))
            assert outcomes[0] == outcomes[1], f"{shape}: two runs differ"
            assert [step for step, _ in outcomes[0][1]] == [*range(1, shape.steps + 1)]
            self._expected[shape] = outcomes[0]
        return self._expected[shape]

    def seconds(self, shape: Shape) -> float:
        """How long that run took."""
        self.expected(shape)
        return self._seconds[shape]


@dataclass
class Case:
    """One injection of a fault: where it runs, what it draws, and which of its kind it is."""

    setting: Setting
    out: Path
    draw: random.Random
    number: int

    def command(self, shape: Shape, *more: str) -> tuple[list[str], Path]:
        """The arguments of `train` and the file of its output."""
        return self.setting.argv(shape, self.out, *more), self.out.with_suffix(".log")

    def start(self, shape: Shape, *more: str, spoil: Spoil | None = None) -> Run:
        return self.setting.start(shape, self.out, *more, spoil=spoil)

    def finish(self, shape: Shape) -> None:
        """Go on with the run to its end: it must end as if nothing had happened."""
        self.setting.finish(shape, self.out)
        same = outcome(self.out, shape) == self.setting.expected(shape)
        assert same, f"{self.out}: not the uninterrupted run's outcome"

    def lost(self) -> int:
        """Steps that were logged and are to be taken again."""
        return last_step(self.out) - max(saved_steps(self.out), default=0)


def outcome(out: Path, shape: Shape) -> Outcome:
    """Of a finished run: the hash of what it trained, bit for bit, and every step with its loss."""
    content = (out / RESULTS[shape.method]).read_bytes()
    lines = [line for line in read_lines(out / "metrics.jsonl") if "loss" in line]
    return hashlib.sha256(content).hexdigest(), [(line["step"], line["loss"]) for line in lines]


def resumed_from(out: Path) -> int:
    """The step of the checkpoint from which a run was first taken up."""
    return json.loads((out / "run.json").read_text())["resumed"][0]["step"]


def last_step(out: Path) -> int:
    """The last step that a run has logged."""
    path = out / "metrics.jsonl"
    if not path.exists():
        return 0
    whole = path.read_text().rpartition("\n")[0]  # a killed run may have been in mid-line
    steps = [json.loads(line).get("step", 0) for line in whole.splitlines()]
    return max(steps, default=0)


def saved_steps(out: Path) -> list[int]:
    """Of the checkpoints that are there by name, in ascending order."""
    names = [re.fullmatch(r"step-(\d+)", path.name) for path in out.glob("checkpoints/*")]
    return sorted(int(name[1]) for name in names if name)
