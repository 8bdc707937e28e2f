"""Every parameter of the model."""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch

from llama.engine import Engine
from llama.engine.state import Tensors
from llama.files import life
from llama.files.run_folder import MODEL
from llama.methods.about import About
from llama.methods.method import Hints, Method, Shapes, Watched
from llama.model.transformer import Transformer
from llama.parallel.agreement import on_main
from llama.settings import LoRAOptions
from llama.weights.shapes import expected_shapes
from llama.weights.writers import WRITERS
from llama.weights.writing import WeightWriter

_ITEM_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


class FullMethod(Method):
    """The result is a model's folder in Hugging Face's layout, in the precision that was computed
    in. Nothing is ever gathered but one parameter at a time."""

    RESULT = MODEL
    LAST = f"{MODEL}_last"
    RESULT_TITLE = "model (Hugging Face)"
    TRAINED = "weights"
    SHARDED = True
    WEIGHT_GRADIENTS = True
    SMALLER = "lower --keep"

    @staticmethod
    def adapters(lora: LoRAOptions) -> LoRAOptions | None:
        return None

    def misfits(self) -> list[str]:
        return []

    def shapes(self) -> Shapes:
        return expected_shapes(self.config)

    def added(self) -> int:
        return 0

    def fixed(self) -> int:
        return 0

    def most_parameters(self) -> int:
        return self.config.parameter_count()

    def result_bytes(self, precision: str) -> int:
        return _ITEM_BYTES[precision] * sum(map(prod, self.shapes().values()))

    def prepare(self, model: Transformer, seed: int, device: torch.device) -> None:
        """A tied output matrix is one parameter with the embedding."""
        model.requires_grad_(True)

    def as_begun(self, model: Transformer) -> None:
        return None

    def watched(self, engine: Engine) -> Watched:
        return Watched(engine.parts.checksums, engine.parts.seen_anywhere)

    def norms(self, engine: Engine) -> Tensors:
        return engine.parts.norms()

    def histogram_of(self, name: str) -> str:
        """One for each kind of parameter."""
        return f"parameters/norm_{_kind(name)}"

    def write(self, engine: Engine, folder: Path, tokenizer: Path | None, about: About) -> Hints:
        """A parameter at a time: each is joined on every rank and written by the main one. The
        folder keeps the base's own chat templates: which one was used is in the card."""
        mesh, names = engine.mesh, list(self.shapes())
        huggingface = WRITERS["huggingface"](folder, self.config, self.source, tokenizer)
        huggingface.beside = about.files(template=False)
        writer = _Failing(huggingface)
        for name in names:
            # Its collectives are given up some minutes after they are called, and on a GPU the call
            # returns: none is to be called while the main rank still writes the one before.
            mesh.wait()
            life.show()
            value = engine.parts.whole(name)
            if mesh.is_main:
                writer.add(name, value)
        return on_main(mesh, writer.finish)

    def put_back(self, engine: Engine, folder: Path) -> bool:
        return False


class _Failing:
    """A writer whose failure is kept until the end: the other ranks are joining parameters with
    this one, and must not be left alone with it."""

    def __init__(self, writer: WeightWriter) -> None:
        self._writer = writer
        self._error: Exception | None = None

    def add(self, name: str, value: torch.Tensor) -> None:
        if self._error is None:
            try:
                self._writer.add(name, value)
            except Exception as error:  # of whatever kind: `finish` raises it
                self._error = error

    def finish(self) -> Hints:
        try:
            if self._error is not None:
                raise self._error
            return self._writer.finish()
        except BaseException:
            self._writer.abandon()
            raise


def _kind(name: str) -> str:
    """`layers.3.attention.wq.weight` without its layer."""
    return ".".join(part for part in name.split(".")[:-1] if not part.isdigit()) + (
        "_bias" if name.endswith(".bias") else ""
    )
