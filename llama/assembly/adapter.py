"""A model as a command is to use it, with an adapter or without: which base, which tokenizer, which
template, and whether they belong together. No weight is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llama.adapters.peft_format import CONFIG
from llama.assembly.model import (
    check_adapter,
    default_device,
    find_tokenizer,
    tokenizer_path,
)
from llama.errors import UserError
from llama.files.run_folder import adapter_folder
from llama.methods.about import TEMPLATE, TRAINING, Recorded, read_recorded
from llama.notes import note
from llama.settings import AdapterOptions
from llama.tokenizer.base import Template, Tokenizer
from llama.tokenizer.identity import tokenizer_hash
from llama.tokenizer.templates import load_template, written_template
from llama.weights.fields import read_json_object
from llama.weights.open_model import BUNDLED, BUNDLED_FROM, ModelSource, is_found, open_model

_SHOWN = 12
"""Characters of a hash that a message shows."""


@dataclass(frozen=True)
class Opened:
    """A model that has been found, with what it is used with."""

    source: ModelSource
    tokenizer: Tokenizer
    tokenizer_path: Path
    """The file or folder that it is from."""
    adapter: Path | None
    """The PEFT folder."""
    recorded: Recorded | None
    """What that folder says of itself."""

    def template(self, asked: str | None) -> Template:
        """The one asked for, else the adapter's own, else the model's. Raises UserError."""
        if asked is None and self.adapter is not None and self.recorded is not None:
            file, name = self.adapter / TEMPLATE, self.recorded.template
            return written_template(file, name, self.tokenizer)
        return load_template(asked, self.tokenizer)


@dataclass(frozen=True)
class Misfit:
    """An adapter and a model that do not belong together."""

    what: str
    advice: str

    @property
    def line(self) -> str:
        return f"{self.what}: {self.advice}"


def open_for_use(options: AdapterOptions) -> Opened:
    """What `options` name, which `check_generate` and its like have found sound. Raises `UserError`
    for what is not there and, unless `--force` makes it a note, for a base or a tokenizer that is
    another than the adapter was trained with."""
    folder = adapter_folder(options.adapter) if options.adapter else None
    if folder is None:
        source = open_model(options.model or BUNDLED, default_device())
        path = tokenizer_path(source, options.tokenizer)
        return Opened(source, find_tokenizer(source, options.tokenizer), path, None, None)
    recorded = read_recorded(folder)
    if options.model is None:
        source = _own_base(folder, recorded)
    else:
        source = open_model(options.model, default_device())
    if recorded is not None:
        asked = options.model is not None
        _settle(other_base("adapter", folder, recorded, source, asked), options.force)
    asked_tokenizer = options.tokenizer or (recorded and existing(recorded.tokenizer_path))
    tokenizer = find_tokenizer(source, asked_tokenizer)
    if recorded is not None:
        _settle(other_tokenizer("adapter", folder, recorded, tokenizer), options.force)
    check_adapter(folder, source.config)
    if recorded is None:
        note(
            f"--adapter {folder}: holds no {TRAINING}, as adapters from elsewhere: that the model "
            "is its base is known by shapes alone"
        )
    return Opened(source, tokenizer, tokenizer_path(source, asked_tokenizer), folder, recorded)


def other_base(
    option: str, folder: Path, recorded: Recorded, source: ModelSource, asked: bool
) -> Misfit | None:
    """What is wrong where `source` is not the model that the adapter in `folder`, given to
    `--option`, was trained on; `asked` says whether the user named the model."""
    found = source.reader.sampled_hash()
    if found == recorded.base_hash:
        return None
    hashes = f"(weights {found[:_SHOWN]} against {recorded.base_hash[:_SHOWN]})"
    if not asked:
        return Misfit(
            f"--{option} {folder}: the model that it was trained on, {recorded.base}, has been "
            f"changed since {hashes}",
            "give it as it was with --model",
        )
    return Misfit(
        f"--{option} {folder}: was trained on {recorded.base}, and {source.name} is another model, "
        f"or a copy of it with other values {hashes}",
        f"give --model {recorded.base}",
    )


def other_tokenizer(
    option: str, folder: Path, recorded: Recorded, tokenizer: Tokenizer
) -> Misfit | None:
    """What is wrong where `tokenizer` gives other ids than the one that the adapter in `folder`,
    given to `--option`, was trained with."""
    found = tokenizer_hash(tokenizer)
    if found == recorded.tokenizer_hash:
        return None
    return Misfit(
        f"--{option} {folder}: was trained with another tokenizer than this one (hash "
        f"{found[:_SHOWN]} against {recorded.tokenizer_hash[:_SHOWN]})",
        f"give that of {recorded.tokenizer_path or recorded.base} with --tokenizer",
    )


def existing(path: Path | None) -> Path | None:
    """`path`, if it is there."""
    return path if path is not None and os.path.exists(path) else None


def _own_base(folder: Path, recorded: Recorded | None) -> ModelSource:
    """The model that the adapter says it was trained on: where it lay then, else by its name."""
    name = (
        recorded.base
        if recorded
        else read_json_object(folder / CONFIG).get("base_model_name_or_path")
    )
    place = existing(recorded.base_path) if recorded else None
    why = "it is not to be found here"
    if not isinstance(name, str) or not name:
        raise UserError(f"--adapter {folder}: does not say what its base is: give --model")
    if place is not None or is_found(name):
        try:
            return open_model(str(place or name), default_device())
        except UserError as error:
            why = error.problems[0]
    if name == BUNDLED_FROM:
        note(f"--adapter {folder}: {why}: {BUNDLED}, a quantised copy of it, is used")
        return open_model(BUNDLED, default_device())
    raise UserError(f"--adapter {folder}: its base is {name}: {why}: give --model")


def _settle(misfit: Misfit | None, force: bool) -> None:
    if misfit is None:
        return
    if not force:
        raise UserError(f"{misfit.line}; --force uses it all the same")
    note(f"{misfit.what}: used all the same")
