"""Where a run starts: at its beginning, or where a checkpoint left it. Decided by the main rank,
before any weights load, and the same on every rank."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from llama.checkpoint import Checkpoint, RunState, Store, read
from llama.checkpoint.content import TENSORS, most_bytes
from llama.checkpoint.restoring import restore
from llama.engine import Engine
from llama.errors import UserError, raise_if
from llama.files.atomic import remove_leftovers
from llama.files.inputs import not_found
from llama.files.run_folder import BEST, CHECKPOINTS, RECORD, SUMMARY, WRITTEN
from llama.methods.kinds import KINDS, most_parameters
from llama.parallel.agreement import on_main
from llama.parallel.mesh import Mesh
from llama.settings import TrainOptions
from llama.train.start.folder import (
    FOLDERS,
    lock,
    make_folder,
    require_room,
    require_shared,
    writing_in,
)
from llama.train.start.identity import CONTENTS, differences, identity, likeness, topology
from llama.train.start.inputs import Inputs
from llama.train.start.schedule import Schedule
from llama.train.start.users_files import require_none

_RESULTS = tuple(name for kind in KINDS.values() for name in (kind.RESULT, kind.LAST))
_WRITTEN = (*WRITTEN, *_RESULTS)


@dataclass
class Start:
    """Where a run starts. Every rank has the same, but for what only the main rank needs."""

    folder: Path
    """The run's folder; made, and this process's own."""
    step: int = 0
    run: RunState = field(default_factory=RunState)
    notes: list[str] = field(default_factory=list)
    finished: dict[str, Any] | None = None
    """The summary of a run of which nothing is left to do."""
    end_before: int | None = None
    """The step of the checkpoint, if the run that made it was to end there: it was evaluated."""
    source: Path | None = None
    """The checkpoint; None where there is none."""
    going_on: str = "the same command goes on"
    """What to type once the run has stopped before its end, up to where it goes on from."""


_BEFORE = {"method": "lora", "base": "half", "columns": "", "lora.start": "uniform"}
_BEFORE |= {"lora.b_lr_ratio": 1.0}
"""Of a run's identity, what was not said by programs that knew but one value of it."""
_SPREAD_BEFORE = {"sequence_parallel": 1}
"""The same of its topology."""


class Resumer:
    """Finds the start, then puts the checkpoint's state into the engine."""

    def __init__(self, inputs: Inputs, plan: Schedule, mesh: Mesh, device: torch.device) -> None:
        self._inputs = inputs
        self._plan = plan
        self._mesh = mesh
        self._checkpoint: Checkpoint | None = None
        self._lock: int | None = None
        self.topology = topology(inputs, plan, mesh, device)
        self.identity: dict[str, Any] = {}
        """On the main rank; read there once, with every byte of the model."""
        self.start = on_main(mesh, self._decide)
        if inputs.method.SHARDED and self.start.finished is None:
            try:
                require_shared(self.start.folder, mesh)
            except BaseException:
                self.close()
                raise

    # On the main rank

    def _decide(self) -> Start:
        options, asked = self._inputs.options, None
        folder = options.output_dir
        if options.resume not in ("auto", "never"):
            asked = Path(options.resume)
            folder = folder or _run_of(asked)
        used = folder is not None and holds_run(folder)
        if folder is not None:
            require_none(folder, options, self._inputs.method, used)
        try:
            if folder is not None and used:
                self._take(folder)
            self.identity = identity(self._inputs, self._plan, self._mesh)
            start = self._choose(folder or FOLDERS, asked, used)
            if start.finished is None:
                store = Store((folder or FOLDERS) / CHECKPOINTS)
                need, smaller = self._to_write(store, start.step), self._inputs.method.SMALLER
                require_room(folder or FOLDERS, store.folder, need, smaller)
            if not used:
                start.folder = folder = make_folder(folder)
                self._take(folder)
                if holds_run(folder):  # another began it while this one read its inputs
                    if options.resume == "never":
                        raise UserError(f"--resume never: {folder} holds a run by now")
                    start = self._choose(folder, asked, used=True)
        except BaseException:
            self.close()
            raise
        start.going_on = going_on(options, start.folder)
        return start

    def _take(self, folder: Path) -> None:
        """Make `folder` this process's own, and put right what a run left there that was killed."""
        self._lock = lock(folder)
        with writing_in(folder):
            remove_leftovers(folder, _WRITTEN.__contains__)
            Store(folder / CHECKPOINTS).tidy()

    def _to_write(self, store: Store, step: int) -> int:
        """Bytes of tensors that the run adds to what it has saved by `step`: its result, and its
        checkpoints: a float32 master and two moments of each parameter that trains, and what is
        kept beside them. One is written before an older one goes."""
        options, total, method = self._inputs.options, self._plan.total_steps, self._inputs.method
        every = options.save_every or self._plan.epochs.windows_per_epoch
        saves = total // every - step // every + bool(total % every and step < total)
        more = options.keep + 1 - min(len(store.steps()), options.keep)
        parameters = TENSORS * sum(map(prod, method.shapes().values())) + method.fixed()
        result = method.result_bytes(self._plan.resolved.precision) * self._results(store, step)
        return result + 4 * parameters * min(saves, more)

    def _results(self, store: Store, step: int) -> int:
        """What the run gives, that often: of the last step, and where the best is kept and each
        evaluation finds a lower loss, of the best by each checkpoint, now, and before."""
        options = self._inputs.options
        if not (options.best and self._inputs.held_out):
            return 1
        every = options.eval_every or self._plan.epochs.windows_per_epoch
        evaluations = -(-self._plan.total_steps // every) - step // every
        there = min(len(list((store.folder.parent / BEST).glob("step-*"))), options.keep)
        return max(1, min(evaluations, options.keep + 3 - there))

    def _choose(self, folder: Path, asked: Path | None, used: bool) -> Start:
        store = Store(folder / CHECKPOINTS)
        if asked is not None:
            found = _read_asked(asked, self._most())
            if used:
                _check_branch(asked, folder, store, found.step)
            return self._from(found, asked, folder)
        return self._newest(folder, store) if used else Start(folder)

    def close(self) -> None:
        """Let another process have the run's folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _newest(self, folder: Path, store: Store) -> Start:
        found, refused = store.newest(self._most())
        notes = [f"refused: {line}" for line in refused]
        if found is not None:
            start = self._from(found, store.path(found.step), folder)
            start.notes = notes + start.notes
            return start
        if refused:
            advice = (
                f"--output_dir {folder}: none of the run's checkpoints can be used; give another"
            )
            raise UserError([*refused, f"{advice} folder to start anew"])
        for result in _RESULTS:
            if (folder / result).exists():
                raise UserError(
                    f"--output_dir: {folder} holds the {result} of a run whose checkpoints are "
                    "gone; give another folder"
                )
        note = f"{folder} holds a run that ended before its first checkpoint: starting at step 0"
        return Start(folder, notes=[note])

    def _from(self, found: Checkpoint, source: Path, folder: Path) -> Start:
        """Going on from `found`, if it is this run's."""
        total = self._plan.total_steps
        problems = differences({**_BEFORE, **found.identity}, self.identity)
        if problems:
            raise UserError(
                [
                    *problems,
                    f"{source}: is of a run with other settings; give those, or a new --output_dir "
                    "to start another",
                ]
            )
        raise_if([f"{source}: {problem}" for problem in self._misfits(found)])
        if found.step > total:
            raise UserError(
                f"{source}: step {found.step} is past the end, {total} steps by --epochs and "
                "--max_steps; raise them"
            )
        notes = [f"going on from {source}: step {found.step} of {total}"]
        if total != found.total_steps:
            notes.append(
                f"the run was begun for {found.total_steps} steps: from here on the learning rate "
                f"follows the schedule of {total}"
            )
        was = {**_SPREAD_BEFORE, **found.topology}
        if moved := differences(was, self.topology):
            lora = self._inputs.method.adapters(self._inputs.options.lora)
            notes += [*moved, likeness(was, self.topology, lora.dropout if lora else 0.0)]
        self._checkpoint = found
        result = self._inputs.method.RESULT
        finished = _finished(folder, source, found.step, result)
        if finished and found.step < total and not self._ended_early(finished):
            finished = None
        end_before = found.step if found.step == found.total_steps else None
        return Start(folder, found.step, found.run, notes, finished, end_before, source)

    def _ended_early(self, finished: dict[str, Any]) -> bool:
        """Whether --early_stop ends the run of that summary where it did."""
        after, now = finished.get("early_stop"), self._inputs.options.early_stop
        return isinstance(after, int) and now is not None and after >= now

    def _most(self) -> int:
        """Bytes of a checkpoint of the most that a run trains: this one, or another, which is then
        refused for what differs."""
        most = most_parameters(self._inputs.source, self._inputs.options)
        return most_bytes(most, fixed=most)

    def _misfits(self, checkpoint: Checkpoint) -> list[str]:
        wanted, found = self._inputs.method.shapes(), checkpoint.shapes
        return [
            f"{name}: expected shape {wanted.get(name)}, found {found.get(name)}"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]

    def hashes(self) -> dict[str, str | None]:
        """SHA-256 of what the run is made of; on the main rank."""
        return {name: self.identity[name] for name in (*CONTENTS, "examples")}

    # On every rank

    def restore(self, engine: Engine) -> None:
        """Put the checkpoint's state into every rank's engine; then it goes on bit for bit."""
        if self.start.source is None:
            return
        set_random_state(restore(self._checkpoint, engine))
        self._checkpoint = None


def random_state() -> dict[str, str]:
    """Of torch's generators on this rank, in hex."""
    state = {"torch": torch.get_rng_state().numpy().tobytes().hex()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return state


def set_random_state(state: dict[str, str]) -> None:
    """What a step draws follows from seed and step alone; this is for whatever else may draw."""
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        cuda = torch.tensor(list(bytes.fromhex(state["cuda"])), dtype=torch.uint8)
        torch.cuda.set_rng_state(cuda)


def _read_asked(folder: Path, most: int) -> Checkpoint:
    """The checkpoint given to --resume."""
    if not os.path.lexists(folder):
        raise UserError(
            f"--resume: {folder} {not_found(folder)}; it takes auto, never, or a folder"
        )
    if (folder / RECORD).exists():
        raise UserError(
            f"--resume: {folder} is a run, not a checkpoint; give it as --output_dir, or one of "
            f"{folder / CHECKPOINTS}"
        )
    return read(folder, most)


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`."""
    return (folder / RECORD).exists() or bool(Store(folder / CHECKPOINTS).steps())


def _run_of(checkpoint: Path) -> Path:
    if checkpoint.parent.name != CHECKPOINTS:
        raise UserError(
            f"--resume: {checkpoint} is in no run's {CHECKPOINTS}/: say with --output_dir where "
            "the run is to go on"
        )
    return checkpoint.parent.parent


def _check_branch(asked: Path, folder: Path, store: Store, step: int) -> None:
    """A run is continued from its newest checkpoint; from another, in a folder of its own."""
    if asked.resolve().parent != store.folder.resolve():
        raise UserError(f"--output_dir: {folder} holds another run than {asked}; give a new folder")
    newest = max(store.steps(), default=step)  # `asked` may go by a name of the user's own
    if newest > step:
        raise UserError(
            f"--resume: {asked} is not the newest of its run, {store.path(newest)} is: give a new "
            "--output_dir to go on from it, so that nothing is overwritten"
        )


def going_on(options: TrainOptions, folder: Path) -> str:
    """Which command goes on with the run in `folder`: the one that was given, where it names that
    folder. Without one it would begin another run, and with a --resume of its own be refused."""
    more = [] if options.output_dir is not None else ["--output_dir", str(folder)]
    more += [] if options.resume == "auto" else ["--resume", "auto"]
    instead = "" if options.resume == "auto" else " in place of its --resume"
    return f"the same command{' with ' if more else ''}{shlex.join(more)}{instead} goes on"


def _finished(folder: Path, source: Path, step: int, result: str) -> dict[str, Any] | None:
    """The summary of the run in `folder`, if `source` is its end and it came through it to its
    `result`."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = source.resolve().parent == (folder / CHECKPOINTS).resolve()
    whole = ours and isinstance(summary, dict) and (folder / result).is_dir()
    at_its_end = whole and (summary.get("status"), summary.get("steps")) == ("finished", step)
    return summary if at_its_end else None
