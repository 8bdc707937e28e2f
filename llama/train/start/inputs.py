"""All that a run is made of, found and checked before any weights load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.assembly.limits import check_examples, degrees_problems
from llama.assembly.model import default_device, find_tokenizer
from llama.data.flat import Examples
from llama.data.holding import HoldOut, shared_examples
from llama.data.prepare import Prepared, Reading
from llama.data.rows import bundled
from llama.errors import UserError, raise_if
from llama.methods.kinds import method_of
from llama.methods.method import Method
from llama.objectives.kinds import SFT
from llama.parallel.agreement import on_every
from llama.parallel.mesh import Mesh
from llama.settings import TrainOptions
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.templates import Template, load_template
from llama.train.start.beginning import beginning_of
from llama.train.start.sameness import require_sameness
from llama.weights.open_model import ModelSource, open_model


@dataclass(frozen=True)
class Inputs:
    """What the user gave, read and found right."""

    options: TrainOptions
    """With what `--init_adapter` says of the adapter in them."""
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
        said = [self.training.report.text()]
        if self.held_out is None:
            return said
        if not self.held_out.report.is_plain:
            said.append(f"held-out: {self.held_out.report.text()}")
        if both := shared_examples(self.training.examples, self.held_out.examples):
            are = "example is" if both == 1 else "examples are"
            said.append(f"held-out: {both:,} {are} among the training rows too, token for token.")
        return said


def read_inputs(options: TrainOptions, deepspeed: dict[str, Any], mesh: Mesh) -> Inputs:
    """Read the model's headers, the tokenizer and the data. Raises `UserError`: what is wrong on
    one host, or not the same on all, every rank says. What can be judged without the other is
    reported together."""
    inputs = on_every(mesh, lambda: _read(options, deepspeed))
    data = {"data": inputs.training, "eval_data": inputs.held_out}
    require_sameness(inputs.options, deepspeed, inputs.source, data, mesh)
    return inputs


def _read(options: TrainOptions, deepspeed: dict[str, Any]) -> Inputs:
    source = open_model(options.model, default_device())
    beginning = beginning_of(options, source)
    options = beginning.options
    raise_if(
        [
            *degrees_problems(options, source.config),
            *method_of(options, source).misfits(),
        ]
    )
    tokenizer = find_tokenizer(source, options.tokenizer)
    template = load_template(options.template, tokenizer)
    beginning.check(tokenizer, template)
    training, held_out = _prepared(options, source, template, tokenizer)
    return Inputs(options, deepspeed, source, tokenizer, template, training, held_out)


def _prepared(
    options: TrainOptions, source: ModelSource, template: Template, tokenizer: Tokenizer
) -> tuple[Prepared, Prepared | None]:
    """What is trained on, and what is held out. Raises one `UserError` for both."""
    reading = Reading(
        options.seq_len, options.pack, options.overlong, options.columns, options.data_cache
    )
    data, eval_data = _data_paths(options)
    if options.eval_split is not None:
        asked = HoldOut(options.eval_split, options.seed)
        both = SFT.prepare_split(data, template, tokenizer, reading, asked)
        check_examples(
            both[0].report.source, Examples(both[0].examples.flat), source.config, tokenizer
        )
        return both
    prepared: list[Prepared | None] = []
    problems: list[str] = []
    for paths in (data, eval_data):
        try:
            found = None
            if paths:
                found = SFT.prepare(paths, template, tokenizer, reading)
                check_examples(found.report.source, found.examples, source.config, tokenizer)
            prepared.append(found)
        except UserError as error:
            problems += error.problems
    raise_if(problems)
    training, held_out = prepared
    assert training is not None
    return training, held_out


def _data_paths(options: TrainOptions) -> tuple[list[Path], list[Path]]:
    """The bundled held-out rows go with the bundled training rows, and with no others."""
    if not options.data:
        return [bundled("instructions_200")], options.eval_data or [bundled("heldout_40")]
    return options.data, options.eval_data
