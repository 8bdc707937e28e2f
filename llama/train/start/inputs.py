"""All that a run is made of, found and checked before any weights load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.assembly.limits import check_examples
from llama.assembly.model import default_device, find_tokenizer
from llama.data.prepare import Prepared
from llama.data.rows import bundled
from llama.errors import UserError, raise_if
from llama.methods.kinds import method_of
from llama.methods.method import Method
from llama.model.config import ModelConfig
from llama.objectives.kinds import SFT
from llama.parallel.agreement import on_every
from llama.parallel.mesh import Mesh
from llama.settings import TrainOptions
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.templates import Template, load_template
from llama.train.start.sameness import require_sameness
from llama.weights.open_model import ModelSource, open_model


@dataclass(frozen=True)
class Inputs:
    """What the user gave, read and found right."""

    options: TrainOptions
    deepspeed: dict[str, Any]
    source: ModelSource
    tokenizer: Tokenizer
    template: Template
    training: Prepared
    held_out: Prepared | None

    @property
    def method(self) -> Method:
        """How the model is trained."""
        return method_of(self.options, self.source)

    def reports(self) -> list[str]:
        """What the user is told of the rows; of the held-out ones, where something befell any."""
        held_out = self.held_out and self.held_out.report
        said = [] if held_out is None or held_out.is_plain else [f"held-out: {held_out.text()}"]
        return [self.training.report.text(), *said]


def read_inputs(options: TrainOptions, deepspeed: dict[str, Any], mesh: Mesh) -> Inputs:
    """Read the model's headers, the tokenizer and the data. Raises `UserError`: what is wrong on
    one host, or not the same on all, every rank says. What can be judged without the other is
    reported together."""
    inputs = on_every(mesh, lambda: _read(options, deepspeed))
    data = {"data": inputs.training, "eval_data": inputs.held_out}
    require_sameness(options, deepspeed, inputs.source, data, mesh)
    return inputs


def _read(options: TrainOptions, deepspeed: dict[str, Any]) -> Inputs:
    source = open_model(options.model, default_device())
    raise_if(
        [
            *degree_problems(options.tensor_parallel, source.config),
            *method_of(options, source).misfits(),
        ]
    )
    tokenizer = find_tokenizer(source, options.tokenizer)
    template = load_template(options.template, tokenizer)
    prepared: list[Prepared | None] = []
    problems: list[str] = []
    for paths in _data_paths(options):
        try:
            found = None
            if paths:
                found = SFT.prepare(
                    *(paths, template, tokenizer, options.seq_len, options.pack),
                    columns=options.columns,
                )
                check_examples(found.report.source, found.packed, source.config, tokenizer)
            prepared.append(found)
        except UserError as error:
            problems += error.problems
    raise_if(problems)
    training, held_out = prepared
    assert training is not None
    return Inputs(options, deepspeed, source, tokenizer, template, training, held_out)


def _data_paths(options: TrainOptions) -> tuple[list[Path], list[Path]]:
    """The bundled held-out rows go with the bundled training rows, and with no others."""
    if not options.data:
        return [bundled("instructions_200")], options.eval_data or [bundled("heldout_40")]
    return options.data, options.eval_data


def degree_problems(degree: int, config: ModelConfig) -> list[str]:
    """Sizes of the model that the tensor-parallel degree does not suit."""
    problems = []
    sizes = {
        "query heads": config.n_heads,
        "kv heads": config.n_kv_heads,
        "feed-forward width": config.ffn_dim,
    }
    bad = {what: size for what, size in sizes.items() if size % degree}
    if bad:
        dividing = [
            d for d in range(1, config.n_kv_heads + 1) if not any(s % d for s in sizes.values())
        ]
        found = ", ".join(f"{what} {size}" for what, size in bad.items())
        problems.append(
            f"--tensor_parallel {degree} does not divide the model's {found}: "
            f"{', '.join(map(str, dividing))} would"
        )
    return problems
