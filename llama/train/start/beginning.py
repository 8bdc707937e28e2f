"""What a run begins with where `--init_adapter` names an adapter: its settings become the run's,
and it must be this model's."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from llama.adapters.match import expected_shapes
from llama.assembly.adapter import other_base, other_tokenizer
from llama.assembly.model import check_adapter
from llama.errors import UserError, raise_if
from llama.files.run_folder import adapter_folder
from llama.methods.about import Recorded, read_recorded
from llama.model.config import LINEARS, ModelConfig
from llama.notes import note
from llama.settings import LoRAOptions, TrainOptions
from llama.tokenizer.base import Template, Tokenizer
from llama.weights.open_model import ModelSource

_OF_THE_VALUES = ("rank", "alpha", "targets", "kind", "scale")
"""Settings that an adapter's tensors have; its dropout is the new run's own."""


@dataclass(frozen=True)
class Beginning:
    """The options of a run, those of the adapter taken from the one that it begins with."""

    options: TrainOptions
    recorded: Recorded | None = None
    """What that one says of itself."""

    def check(self, tokenizer: Tokenizer, template: Template) -> None:
        """Raise `UserError` where the adapter was trained with another tokenizer; note another
        template, which the new run may well want."""
        folder, recorded = self.options.init_adapter, self.recorded
        if folder is None or recorded is None:
            return
        misfit = other_tokenizer("init_adapter", folder, recorded, tokenizer)
        raise_if([misfit.line] if misfit else [])
        if template.name != recorded.template:
            note(
                f"--init_adapter {folder}: was trained with the template {recorded.template}, and "
                f"this run uses {template.name}"
            )


def beginning_of(options: TrainOptions, source: ModelSource) -> Beginning:
    """Raises `UserError` for an adapter that a run on `source` cannot begin with."""
    folder = adapter_folder(options.init_adapter) if options.init_adapter else None
    if folder is None:
        return Beginning(options)
    recorded = read_recorded(folder)
    misfit = recorded and other_base("init_adapter", folder, recorded, source, asked=True)
    raise_if([misfit.line] if misfit else [])
    theirs = _as_one(folder, check_adapter(folder, source.config), source.config)
    lora = _joined(folder, options.lora, theirs)
    return Beginning(replace(options, lora=lora, init_adapter=folder), recorded)


def _as_one(folder: Path, layers: dict[str, LoRAOptions], config: ModelConfig) -> LoRAOptions:
    """The settings that all of its layers have, in every block. Raises `UserError` where they
    differ."""
    first = next(iter(layers.values()))
    found = {layer.rpartition(".")[2] for layer in layers}
    one = replace(first, targets=tuple(name for name in LINEARS if name in found))
    expected = {name.partition(".lora.")[0] for name in expected_shapes(config, one)}
    alike = {replace(options, targets=one.targets) for options in layers.values()}
    if len(alike) > 1 or expected != layers.keys():
        raise UserError(
            f"--init_adapter {folder}: its layers differ in rank or alpha, or some blocks have "
            "none: a run trains the same on every block; begin with another adapter"
        )
    return one


def _joined(folder: Path, asked: LoRAOptions, theirs: LoRAOptions) -> LoRAOptions:
    """`asked`, with what the adapter has. What differs from its default has been given, and is
    refused where the adapter has something else."""
    plain = LoRAOptions()
    problems, taken = [], {}
    for name in (field.name for field in fields(plain) if field.name in _OF_THE_VALUES):
        given, default, found = (getattr(o, name) for o in (asked, plain, theirs))
        same = set(given) == set(found) if isinstance(found, tuple) else given == found
        if not same and given != default:
            problems.append(
                f"--lora.{name}: {_shown(given)} is given, and --init_adapter {folder} has "
                f"{_shown(found)}: leave it out"
            )
        elif not same:
            taken[name] = found
    raise_if(problems)
    if taken:
        said = ", ".join(f"{name} {_shown(value)}" for name, value in taken.items())
        note(f"--init_adapter {folder}: its {said} are taken")
    return replace(asked, **taken)


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else f"{value}"
