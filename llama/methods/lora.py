"""Adapters beside a frozen model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from llama.adapters import peft_format
from llama.adapters.attach import adapters, attach, initialise, set_values, switched_off
from llama.adapters.match import expected_shapes, fixed_count, parameter_count
from llama.adapters.peft_format import AdapterConfig
from llama.engine import Engine, gathered
from llama.engine.state import Tensors
from llama.files.atomic import write_folder
from llama.files.run_folder import ADAPTER
from llama.methods.about import About
from llama.methods.method import Hints, Method, Shapes, Watched
from llama.model.config import LINEARS
from llama.model.transformer import Transformer
from llama.parallel.agreement import on_main
from llama.settings import LoRAOptions
from llama.settings.starts import UNIFORM


class LoRAMethod(Method):
    """The result is a PEFT folder. All of it is small: whole on each rank wherever it is asked
    for."""

    RESULT = ADAPTER
    LAST = f"{ADAPTER}_last"
    RESULT_TITLE = "adapter (PEFT)"
    TRAINED = "adapter"
    SHARDED = False
    WEIGHT_GRADIENTS = False
    SMALLER = "lower --keep or --lora.rank"

    @staticmethod
    def adapters(lora: LoRAOptions) -> LoRAOptions | None:
        return lora

    def misfits(self) -> list[str]:
        rank = self.lora.rank
        if rank > self.config.dim:
            return [f"--lora.rank: {rank} is above the model's width {self.config.dim}"]
        if self.lora.start == UNIFORM:
            return []
        return [
            f"--lora.rank: {rank} is more than the {most} singular values of {name}, from which "
            f"--lora.start {self.lora.start} begins: lower it, or leave that layer out"
            for name in self.lora.targets
            if (most := min(self.config.linear_shape(name))) < rank
        ]

    def shapes(self) -> Shapes:
        return expected_shapes(self.config, self.lora)

    def added(self) -> int:
        return parameter_count(self.config, self.lora)

    def fixed(self) -> int:
        return fixed_count(self.config, self.lora)

    def most_parameters(self) -> int:
        """Of the largest adapter that a run is begun with."""
        largest = replace(self.lora, rank=self.config.dim, targets=LINEARS)
        return parameter_count(self.config, largest)

    def result_bytes(self, precision: str) -> int:
        """A PEFT folder is in float32."""
        return 4 * (self.added() + self.fixed())

    def prepare(self, model: Transformer, seed: int, device: torch.device) -> None:
        attach(model, self.lora)
        initialise(model, seed, device, gathered)
        for _, adapter in adapters(model):
            adapter.to(model.tok_embeddings.weight.dtype)
        if self.init_adapter is not None:
            set_values(model, peft_format.load_state(self.init_adapter))

    def as_begun(self, model: Transformer) -> AbstractContextManager[None] | None:
        """An adapter begins by adding nothing, so that without it the model is what it was. The
        values of another adapter, which one may begin with, are gone after a step."""
        return switched_off(model) if self.init_adapter is None else None

    def watched(self, engine: Engine) -> Watched:
        return Watched(engine.own_values, engine.parts.seen_anywhere)

    def norms(self, engine: Engine) -> Tensors:
        return {name: value.norm() for name, value in engine.whole_adapter().items()}

    def histogram_of(self, name: str) -> str:
        """One for every A and one for every B."""
        return f"adapter/norm_{name.rpartition('.')[2].upper()}"

    def write(self, engine: Engine, folder: Path, tokenizer: Path | None, about: About) -> Hints:
        config = AdapterConfig(self.lora, self.source.name)
        state = engine.whole_adapter() | engine.fixed_values()

        def write() -> None:
            write_folder(folder, peft_format.contents(state, config) | about.files())

        on_main(engine.mesh, write)
        return []

    def put_back(self, engine: Engine, folder: Path) -> bool:
        """A PEFT folder has the optimizer's masters, so that the model is then to the last bit what
        it was."""
        masters = on_main(
            engine.mesh, lambda: peft_format.held(peft_format.load_state(folder), self.lora)
        )
        engine.load_state(replace(engine.state(engine.own_values()), masters=masters))
        return True
