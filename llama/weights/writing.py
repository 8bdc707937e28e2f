"""What every writer of a model offers, and what those that write files share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

from llama.files.atomic import abandon_folder, finish_folder, sync_folders, write_in
from llama.model.config import ModelConfig
from llama.weights import rotary
from llama.weights.open_model import ModelSource


class WeightWriter(Protocol):
    """Takes a model's weights one at a time, by native name and in native layout. What it writes
    appears whole or not at all. Raises `OSError` where it cannot be written."""

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """A whole weight. They come in the order of `llama.weights.shapes.expected_shapes`, all in
        one type."""
        ...

    def finish(self) -> list[str]:
        """Let it appear, with what goes with the weights. Gives, one line each, what a user has to
        know of it."""
        ...

    def abandon(self) -> None:
        """Remove what was begun."""
        ...


class FileWriter(ABC):
    """A writer of files: rotary layout. A format adds the rest."""

    interleaved: bool
    """Whether the format keeps rotary pairs in adjacent rows."""

    def __init__(
        self, folder: Path, config: ModelConfig, source: ModelSource, tokenizer: Path | None
    ) -> None:
        """A model of the sizes `config` for `folder`. What goes with the weights comes from
        `source`, which they began as; `tokenizer` is the one to be used in place of its own."""
        self.folder = folder
        self.config = config
        self.source = source
        self.tokenizer = tokenizer or source.tokenizer_path
        self.beside: dict[str, bytes] = {}
        """Files to go with the weights, by name; written at the end."""
        self.template: str | None = None
        """A chat template, in Jinja, in place of the tokenizer's own."""
        self.verify: Callable[[Path], object] = lambda partial: None
        """Called with the folder once all of it is there, and before it has its name; where it
        raises, there is no folder."""

    @staticmethod
    def misfits(config: ModelConfig) -> list[str]:
        """What of a model of these sizes the format cannot say, one line each."""
        return []

    _partial: Path
    """The folder while it has no name; a format begins it with its first weight."""

    def _appear(self, files: dict[str, bytes]) -> None:
        """Put `files` beside the weights, which are all there, and let the folder have its name."""
        for name, content in (files | self.beside).items():
            write_in(self._partial, name, content)
        sync_folders(self._partial)
        self.verify(self._partial)
        finish_folder(self.folder)

    @abstractmethod
    def _store(self, name: str, tensor: torch.Tensor) -> None:
        """Write a weight, laid out as the format has it."""

    @abstractmethod
    def finish(self) -> list[str]: ...

    @abstractmethod
    def _let_go(self) -> None:
        """Close the files that are open, finished or not. Raises `OSError`."""

    def abandon(self) -> None:
        """Whatever closing says: what a full disk has refused it refuses again."""
        try:
            with suppress(OSError):
                self._let_go()
        finally:
            abandon_folder(self.folder)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self.interleaved and rotary.is_rotary(name):
            tensor = rotary.halves_to_interleaved(tensor, self.config.head_dim)
        self._store(name, tensor)
