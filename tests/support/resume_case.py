"""A model, rows and runs on them, to be stopped and taken up again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.tiny_runs import (
    deepspeed_json,
    merged,
    started,
    write_json,
    write_model,
    write_rows,
)

STEPS = 8
"""Of two epochs of 7 rows, two documents in each: four windows of two rows, the last of one."""


@dataclass
class Case:
    """One model, its rows, and the runs made on them."""

    folder: Path
    runs: list[dict[str, Any]] = field(default_factory=list)
    lora: tuple[str, ...] = ("--lora.targets", "wq,wo", "--lora.dropout", "0.1")
    """The options of what trains."""
    pages: bool = False
    """Whether each run draws its page at its end, which takes as long as the run."""

    def __post_init__(self) -> None:
        self.model = write_model(self.folder / "model")
        self.rows = write_rows(self.folder / "rows.json", 14)
        self.held_out = write_rows(self.folder / "held_out.json", 3)

    def out(self, name: str) -> Path:
        return self.folder / name

    def argv(self, name: str, settings: dict[str, Any], *more: str) -> list[str]:
        path = self.folder / f"settings-{len(list(self.folder.glob('settings-*')))}.json"
        given = [
            *("--deepspeed", str(write_json(path, settings)), "--model", str(self.model)),
            *("--data", str(self.rows), "--eval_data", str(self.held_out)),
            *("--template", "chatml", "--seq_len", "96", "--epochs", "2"),
            *self.lora,
            *("--output_dir", str(self.out(name))),
        ]
        return merged(given, more)

    def add(
        self, name: str, settings: dict[str, Any], stop_at: int | None, *more: str, **full: int
    ) -> None:
        """A run of the next `go`, as `tests/support/resume_runs.py` takes it."""
        self.runs.append(
            {
                "argv": self.argv(name, settings, *more),
                "stop_at": stop_at,
                "page": self.pages,
                **full,
            }
        )

    def go(self, ranks: int = 1) -> str:
        """Make the runs that were added, one after the other; gives what they said."""
        plan = write_json(self.folder / "plan.json", self.runs)
        launcher = "python" if ranks == 1 else "torchrun"
        done = started(launcher, "tests/support/resume_runs.py", plan, ranks=ranks)
        assert done.returncode == 0, done.stderr
        self.runs = []
        return done.stderr


def settings(kind: str, accumulation: int = 2) -> dict[str, Any]:
    """`zero1-bf16` and the like, with a schedule that moves at every step."""
    stage, precision = int(kind[4]), kind[6:]
    document = deepspeed_json(stage, accumulation)
    document["scheduler"] = {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}}
    document["scheduler"]["params"] |= {"warmup_num_steps": "auto", "warmup_min_lr": "auto"}
    if precision == "bf16":
        document["bf16"] = {"enabled": True}
    return document
