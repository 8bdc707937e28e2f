"""All that a run is made of, found and checked before any weights load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.assembly.model import default_device, find_tokenizer
from llama.data.prepare import Prepared
from llama.data.rows import bundled
from llama.errors import UserError, raise_if
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
    raise_if(degree_problems(options.tensor_parallel, options.lora.rank, source.config))
    tokenizer = find_tokenizer(source, options.tokenizer)
    template = load_template(options.template, tokenizer)
    training_path, held_out_path = _data_paths(options)
    prepared: list[Prepared | None] = []
    problems: list[str] = []
    for path in (training_path, held_out_path):
        try:
            found = path and SFT.prepare(path, template, tokenizer, options.seq_len, options.pack)
            prepared.append(found)
        except UserError as error:
            problems += error.problems
    raise_if(problems)
    training, held_out = prepared
    assert training is not None
    return Inputs(options, deepspeed, source, tokenizer, template, training, held_out)


def _data_paths(options: TrainOptions) -> tuple[Path, Path | None]:
    """The bundled held-out rows go with the bundled training rows, and with no others."""
    if options.data is None:
        return bundled("instructions_200"), options.eval_data or bundled("heldout_40")
    return options.data, options.eval_data


def degree_problems(degree: int, rank: int, config: ModelConfig) -> list[str]:
    """Sizes of the model that the tensor-parallel degree or the adapters' rank does not suit."""
    problems = []
    sizes = {
        "query heads": config.n_heads,
        "kv heads": config.n_kv_heads,
        "feed-forward width": config.ffn_dim,
        "vocabulary": config.vocab_size,
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
    if rank > config.dim:
        problems.append(f"--lora.rank: {rank} is above the model's width {config.dim}")
    return problems
