"""What a place is asked that a run can be watched in: TensorBoard, Weights & Biases and the like.

A place is one file here with a class of this kind, and one line of `kinds.py`.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.files.run_folder import REPORTED_TO
from llama.pages.sample import Sample

PROJECT = "llama-lora"
"""What the runs of this program are kept under, where the environment names nothing else."""

Status = str
"""How a run ended, as its summary has it: finished, interrupted or failed."""


COLUMNS = ("rows", "prompt", "before", "after")
"""Of a table of samples."""


@dataclass(frozen=True)
class Watched:
    """The run, as a place has to know it."""

    folder: Path
    step: int = 0
    """The step that it goes on from; what an earlier process told of later ones it tells again."""
    ids: Ids = field(default_factory=lambda: Ids(None))

    @property
    def name(self) -> str:
        return self.folder.absolute().name


class Sink(ABC):
    """Takes the numbers of one run, all finite, by grouped names (`llama/metrics/names.py`).

    Where a run is gone on with, it is told every number from the run's beginning, and passes over
    those that it has."""

    OF_THE_RUN = False
    """Whether what it writes lies in the run's folder: then a disk that is full ends the run, as it
    does for the run's other files, and else the telling alone (`apart.py`)."""

    @classmethod
    def problems(cls) -> list[str]:
        """What is amiss here before any run begins, one line each, for the user to put right."""
        return []

    @abstractmethod
    def __init__(self, run: Watched, config: Mapping[str, Any]) -> None:
        """Begin the run there, or go on with it; `config` is what it was resolved to be, nested."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    @abstractmethod
    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        """A distribution over the layers, of finite numbers, one or more."""

    @abstractmethod
    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Answers of the model as it was at `step`, not after the newest scalars'."""

    @abstractmethod
    def end(self, status: Status, summary: Mapping[str, Any]) -> None:
        """The last call; `summary` is what the run came to."""

    @property
    @abstractmethod
    def how_to_look(self) -> str | None:
        """A command or an address; None where there is nothing to be seen."""


class Ids:
    """By what a run is known in each place, kept in the run's folder: a run that is gone on with
    goes on there too. Threads of several places may ask at once."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder and folder / REPORTED_TO
        self._lock = threading.Lock()
        self._ids = _read(self._path) if self._path else {}

    def get(self, place: str) -> str | None:
        return self._ids.get(place)

    def keep(self, place: str, value: str) -> None:
        """Raises `OSError`."""
        with self._lock:
            self._ids[place] = value
            if self._path is not None:
                write_file(self._path, (json_text(self._ids, indent=2) + "\n").encode())


def _read(path: Path) -> dict[str, str]:
    """Nothing where the file is not there or spoilt: then the run is a new one in each place."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}
