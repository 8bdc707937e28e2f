"""The checkpoints of one run: which there are, a new one, the newest that is whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

from llama.adapters.peft_format import AdapterConfig
from llama.checkpoint.content import (
    ILL_FORMED,
    TRAINER,
    Checkpoint,
    most_bytes,
    read_trainer,
)
from llama.checkpoint.reading import read
from llama.checkpoint.whole import contents
from llama.errors import TrainingError, UserError
from llama.files.atomic import remove_folder, remove_leftovers, write_folder

_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turn what the system, or a reader, says of a save into the line that the run ends with."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{folder}: the checkpoint could not be saved: {error.strerror}; "
            "the earlier ones are as they were"
        ) from error
    except UserError as error:
        raise TrainingError(f"the checkpoint could not be saved: {error}") from error


class Store:
    """The folder `checkpoints/` of a run. One process at a time uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Of every checkpoint that is there, valid or not, the newest first."""
        if not self.folder.is_dir():
            return []
        matches = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def save(self, checkpoint: Checkpoint, config: AdapterConfig, keep: int) -> Path:
        """Write a checkpoint, read it back, let it appear; then remove all but the newest `keep` up
        to it. Raises `TrainingError`: those before it are then as they were."""
        folder = self.path(checkpoint.step)
        files = contents(checkpoint, config)
        most = most_bytes(sum(map(prod, checkpoint.shapes.values())), checkpoint.fixed)
        with told(folder):
            write_folder(folder, files, lambda partial: read(partial, most))
            self.remove_older(checkpoint.step, keep)
        return folder

    def remove_older(self, newest: int, keep: int) -> None:
        """Of the checkpoints up to `newest` leave the last `keep`."""
        for step in [step for step in self.steps() if step <= newest][keep:]:
            remove_folder(self.path(step))

    def best_steps(self) -> set[int]:
        """Which step was the best so far, by each checkpoint that is there under whatever name: a
        run that goes on from it needs what came of that step."""
        found = set()
        for path in self.folder.glob(f"*/{TRAINER}"):
            with suppress(OSError, *ILL_FORMED):  # nobody goes on from a damaged one
                found.add(int(read_trainer(path.read_bytes())["run"]["best_step"]))
        return found

    def newest(self, most: int) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and one line for each newer one: why it is not."""
        refused: list[str] = []
        for step in self.steps():
            try:
                found = read(self.path(step), most)
                if found.step == step:
                    return found, refused
                refused.append(f"{self.path(step)}: is the checkpoint of step {found.step}")
            except UserError as error:
                refused.append(error.problems[0])
        return None, refused

    def tidy(self) -> None:
        """Put right what a killed run left half done. To be called before anything is read."""
        remove_leftovers(self.folder, lambda name: _NAME.fullmatch(name) is not None)
