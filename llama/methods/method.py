"""What every way to train is asked.

A way is one file of this folder with a class of these methods, and one line in `kinds.py`. Shapes
are those of whole, unsharded tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from llama.engine import Engine
from llama.engine.state import Tensors
from llama.methods.about import About
from llama.model.config import ModelConfig
from llama.model.transformer import Transformer
from llama.settings import LoRAOptions
from llama.weights.open_model import ModelSource

Shapes = dict[str, tuple[int, ...]]
Hints = list[str]


@dataclass(frozen=True)
class Watched:
    """What the check of a run's first steps looks at."""

    values: Callable[[], Tensors]
    """Name to something that changes when the parameter does; every rank must call it."""
    agreed: Callable[[torch.Tensor], torch.Tensor]
    """What ranks that share a parameter have seen of it, one flag for each, from what this rank
    has; every rank must call it."""


class Method(ABC):
    """One way to train the model of `source`."""

    RESULT: ClassVar[str]
    """The folder in a run's folder that holds what the run gives."""
    LAST: ClassVar[str]
    """The one that holds the same of the last step, where `RESULT` is of the best."""
    RESULT_TITLE: ClassVar[str]
    """What that is, for the user."""
    TRAINED: ClassVar[str]
    """What trains, in a word: `adapter`."""
    SHARDED: ClassVar[bool]
    """Whether a checkpoint's tensors are too large for one rank: each then writes its own."""
    WEIGHT_GRADIENTS: ClassVar[bool]
    """Whether each weight of the model takes part in a product for its own gradient."""
    SMALLER: ClassVar[str]
    """What a user whose disk is full may do."""

    def __init__(
        self, lora: LoRAOptions, source: ModelSource, init_adapter: Path | None = None
    ) -> None:
        """`init_adapter` is a PEFT folder whose values an adapter is to begin with, and which
        suits `lora`."""
        self.lora = lora
        self.source = source
        self.init_adapter = init_adapter

    @property
    def config(self) -> ModelConfig:
        return self.source.config

    # Before any weights load

    @abstractmethod
    def misfits(self) -> list[str]:
        """What of the options the model is too small for."""

    @abstractmethod
    def shapes(self) -> Shapes:
        """Every parameter that trains."""

    @abstractmethod
    def added(self) -> int:
        """Parameters that come to the model's own and train."""

    @abstractmethod
    def fixed(self) -> int:
        """Of what comes to the model's own and does not train."""

    @abstractmethod
    def most_parameters(self) -> int:
        """That any run of this kind on this model trains: a checkpoint of more is none."""

    @abstractmethod
    def result_bytes(self, precision: str) -> int:
        """Bytes of tensors of what a run in `precision` (`fp16`, `bf16`, `fp32`) gives."""

    # With the model

    @abstractmethod
    def prepare(self, model: Transformer, seed: int, device: torch.device) -> None:
        """Have of `model`, which holds its weights and trains nothing, those parameters train that
        are to, with their first values."""

    @abstractmethod
    def as_begun(self, model: Transformer) -> AbstractContextManager[None] | None:
        """Within it, `model` computes what it did before any step, at whatever step it is. None
        where that is gone."""

    # With the engine; every rank must call these

    @abstractmethod
    def watched(self, engine: Engine) -> Watched:
        """What the first steps are checked by."""

    @staticmethod
    @abstractmethod
    def adapters(lora: LoRAOptions) -> LoRAOptions | None:
        """Of the settings of adapters those that a run of this kind has; None for no adapters."""

    @abstractmethod
    def norms(self, engine: Engine) -> Tensors:
        """The norm of each tensor that trains, a scalar. Every rank must call it."""

    @abstractmethod
    def histogram_of(self, name: str) -> str:
        """The histogram, over the layers, that the norm of this tensor belongs to."""

    @abstractmethod
    def write(self, engine: Engine, folder: Path, tokenizer: Path | None, about: About) -> Hints:
        """Write what the run gives as `folder`, which appears whole or not at all, with what says
        what it is; `tokenizer` is the one that was asked for in place of the model's own. Gives
        what the user has to know of it, one line each, on the main rank. Raises `TrainingError` on
        every rank where it cannot be written."""

    @abstractmethod
    def put_back(self, engine: Engine, folder: Path) -> bool:
        """Have the model be what `write` has written as `folder`, to be asked and not trained any
        more. False, and nothing is done, where that would take as much as a start of the run."""
