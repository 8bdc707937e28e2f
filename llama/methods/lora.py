"""Adapters beside a frozen model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from llama.adapters import peft_format
from llama.adapters.attach import adapters, attach, initialise, switched_off
from llama.adapters.match import expected_shapes, parameter_count
from llama.adapters.peft_format import AdapterConfig
from llama.engine import Engine
from llama.engine.state import Tensors
from llama.files.atomic import write_folder
from llama.methods.method import Hints, Method, Shapes, Watched
from llama.model.config import LINEARS
from llama.model.transformer import Transformer
from llama.parallel.agreement import on_main
from llama.settings import LoRAOptions


class LoRAMethod(Method):
    """The result is a PEFT folder. All of it is small: whole on each rank wherever it is asked
    for."""

    RESULT = "adapter"
    RESULT_TITLE = "adapter (PEFT)"
    TRAINED = "adapter"
    SHARDED = False
    WEIGHT_GRADIENTS = False
    SMALLER = "lower --keep or --lora.rank"

    @staticmethod
    def adapters(lora: LoRAOptions) -> LoRAOptions | None:
        return lora

    def misfits(self) -> list[str]:
        if self.lora.rank <= self.config.dim:
            return []
        return [f"--lora.rank: {self.lora.rank} is above the model's width {self.config.dim}"]

    def shapes(self) -> Shapes:
        return expected_shapes(self.config, self.lora)

    def added(self) -> int:
        return parameter_count(self.config, self.lora)

    def most_parameters(self) -> int:
        """Of the largest adapter that a run is begun with."""
        largest = replace(self.lora, rank=self.config.dim, targets=LINEARS)
        return parameter_count(self.config, largest)

    def result_bytes(self, precision: str) -> int:
        """A PEFT folder is in float32."""
        return 4 * self.added()

    def prepare(self, model: Transformer, seed: int, device: torch.device) -> None:
        attach(model, self.lora)
        initialise(model, seed, device)
        for _, adapter in adapters(model):
            adapter.to(model.tok_embeddings.weight.dtype)

    def as_begun(self, model: Transformer) -> AbstractContextManager[None]:
        """An adapter begins with B at zero."""
        return switched_off(model)

    def watched(self, engine: Engine) -> Watched:
        return Watched(engine.own_values, lambda flags: flags)

    def norms(self, engine: Engine) -> Tensors:
        return {name: value.norm() for name, value in engine.whole_adapter().items()}

    def histogram_of(self, name: str) -> str:
        """One for every A and one for every B."""
        return f"adapter/norm_{name.rpartition('.')[2].upper()}"

    def write(self, engine: Engine, folder: Path, tokenizer: Path | None) -> Hints:
        save_adapter(engine, folder, AdapterConfig(self.lora, self.source.name))
        return []


def save_adapter(engine: Engine, folder: Path, config: AdapterConfig) -> None:
    """Write the whole adapter as a PEFT folder, as one: it appears whole or not at all. Every rank
    must call it. Raises `TrainingError` on all of them where it cannot be written."""
    state = engine.whole_adapter()
    on_main(engine.mesh, lambda: write_folder(folder, peft_format.contents(state, config)))
