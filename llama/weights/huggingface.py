"""Hugging Face's layout: `config.json` and safetensors, in one file or several with an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama.errors import UserError, raise_if
from llama.files.safetensors import FLOATS, open_safetensors
from llama.weights.fields import read_json_object, shorten
from llama.weights.huggingface_config import read_config
from llama.weights.names import from_huggingface, is_rotary_buffer, to_huggingface
from llama.weights.reader import FileReader, same_values
from llama.weights.shapes import TensorHeader, first_few, header_problems, size_problems, summarise

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class HuggingFaceReader(FileReader):
    """Reads a folder in Hugging Face's layout, slices straight from the mapped files. Raises
    UserError with all that is wrong with the folder's headers."""

    interleaved = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        config_file = folder / "config.json"
        problems: list[str] = []
        try:
            config, problems = read_config(config_file)
        except UserError as error:
            problems, config = error.problems, None
        try:
            files, index = _weight_files(folder)
            self._handles = _open(files)
        except UserError as error:
            raise UserError(problems + error.problems) from None
        if config is None:
            raise UserError(problems)
        self._places, headers, name_problems = _headers(self._handles, index, folder)
        problems = problems or size_problems(config, str(config_file))
        spare = headers.pop("output.weight", None) if config.tied_embedding else None
        sound = not problems
        problems += name_problems
        found = header_problems(config, headers, str(folder), to_huggingface, sound)
        untied = f"{folder}: missing tensor lm_head.weight"
        if untied in found and "tie_word_embeddings" not in read_json_object(config_file):
            found[found.index(untied)] += (
                f", and {config_file} does not say tie_word_embeddings: set it to true there if "
                "the output is the embedding itself"
            )
        problems += found
        raise_if(problems)
        shapes = {name: header.shape for name, header in headers.items()}
        extras = [folder / INDEX] if index is not None else []
        super().__init__(config, shapes, [config_file, *extras, *files])
        if spare is not None:
            self._check_spare(spare, config_file)

    def _check_spare(self, spare: TensorHeader, config_file: Path) -> None:
        """A tied model may hold its matrix a second time, if it is the same."""
        self._shapes["output.weight"] = spare.shape
        if spare.shape != self._shapes["tok_embeddings.weight"] or not same_values(
            self, "output.weight", "tok_embeddings.weight", spare.shape
        ):
            raise UserError(
                f"{config_file}: tie_word_embeddings is true, but lm_head.weight differs from "
                "model.embed_tokens.weight: set it to false, or remove lm_head.weight"
            )
        del self._shapes["output.weight"]

    def place(self, name: str) -> str:
        return str(self._folder / self._places[name])

    def _stored(self, name: str, dim: int, start: int, length: int) -> torch.Tensor:
        window = self._handles[self._places[name]].get_slice(to_huggingface(name))
        rows = slice(start, start + length)
        return window[rows] if dim == 0 else window[:, rows]


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files of `folder`, and the index if there is one. Raises UserError."""
    single = folder / SINGLE
    if single.exists():
        return [single], None
    index_file = folder / INDEX
    if not index_file.exists():
        hint = ""
        if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
            hint = "; pickled weights are not read: convert them with save_pretrained()"
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}{hint}")
    index = read_json_object(index_file).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{index_file}: weight_map must be an object of tensor name to file name")
    names = sorted({str(name) for name in index.values()})
    outside = [shorten(name) for name in names if not _is_plain(name)]
    raise_if(summarise(str(index_file), "not the name of a .safetensors file here:", outside))
    return [folder / name for name in names], {key: str(name) for key, name in index.items()}


def _is_plain(name: str) -> bool:
    """Whether `name` stays in its folder, on any system, and is a safetensors file's."""
    return name.endswith(".safetensors") and not set(name) & set("/\\:\0") and name[0] != "."


def _open(files: list[Path]) -> dict[str, Any]:
    """Open files by name."""
    handles, problems = {}, []
    for file in files:
        try:
            handles[file.name] = open_safetensors(file)
        except UserError as error:
            problems += error.problems
    raise_if(first_few(problems))
    return handles


def _headers(
    handles: dict[str, Any], index: dict[str, str] | None, folder: Path
) -> tuple[dict[str, str], dict[str, TensorHeader], list[str]]:
    """By native name, the file and the header of each tensor; and names that do not belong."""
    places, headers = {}, {}
    unknown, unlisted, astray = [], [], set(index or {})
    for file, handle in handles.items():
        for key in handle.keys():
            if index is not None and index.get(key) != file:
                unlisted.append(f"{key} of {file}")
                continue
            astray.discard(key)
            native = from_huggingface(key)
            if native is not None:
                window = handle.get_slice(key)
                dtype = window.get_dtype()
                headers[native] = TensorHeader(tuple(window.get_shape()), dtype, dtype in FLOATS)
                places[native] = file
            elif not is_rotary_buffer(key):
                unknown.append(key)
    return (
        places,
        headers,
        [
            *summarise(str(folder), "unexpected tensor", unknown),
            *summarise(str(folder / INDEX), "does not list", unlisted),
            *summarise(str(folder / INDEX), "lists a tensor that its file does not hold:", astray),
        ],
    )
