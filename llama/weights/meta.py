"""Meta's layout: `params.json` and any number of `consolidated.NN.pth`, one per shard.

LLaMA 1 and 2 cut `tok_embeddings` along its columns, Llama 3 along its rows; the shapes tell. All
else is cut as fairscale's layers are: wq wk wv w1 w3 output by rows, wo w2 by columns, the norms
(and the biases of wo and w2) whole in every shard.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import torch

from llama.errors import UserError, raise_if
from llama.files.inputs import filled_file_problem
from llama.files.kinds import PICKLE, TORCH
from llama.model.config import ModelConfig
from llama.weights.meta_config import POSITIONS, complete, read_params
from llama.weights.names import from_meta, is_rotary_buffer
from llama.weights.reader import FileReader, same_values
from llama.weights.shapes import TensorHeader, first_few, header_problems, size_problems, summarise

_SHARD = re.compile(r"consolidated\.([0-9]{2,})\.pth")
_FORBIDDEN = re.compile(r"GLOBAL ([A-Za-z_][\w.]{0,80})")
"""In torch's words, what a pickle would have called."""
_KINDS = (TORCH, PICKLE)
"""A bare pickle is left to torch, whose restricted reader names what it would have called."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Shard = dict[str, torch.Tensor]


class MetaReader(FileReader):
    """Reads a folder in Meta's layout; slices come from the shards that hold them, mapped from
    disk. Raises UserError with all that is wrong with the folder's headers."""

    interleaved = True

    def __init__(self, folder: Path) -> None:
        params = folder / "params.json"
        files, problems = _shard_files(folder)
        try:
            fields, config = read_params(params)
        except UserError as error:
            raise UserError(error.problems + problems) from None
        raise_if(fields.problems + problems)
        self._shards = _load_shards(files)
        raise_if(_shard_problems(self._shards, files, config))
        self._dims = {name: _cut_along(name, self._shards, config) for name in self._shards[0]}
        headers = {name: self._header(name) for name in self._shards[0]}
        config = complete(fields, _sized_by_tensors(config, headers))
        untied = "output.weight" in headers
        problems = fields.problems + size_problems(config, str(params))
        config, width_problems = _check_width(config, headers, params)
        raise_if(problems + width_problems)  # wrong sizes would make every shape wrong
        raise_if(header_problems(config, headers, str(folder)))
        shapes = {name: header.shape for name, header in headers.items()}
        sizes = [path for path in (params, folder / POSITIONS) if path.exists()]
        super().__init__(config, shapes, [*sizes, *files])
        # Meta's tied releases hold the matrix under both names; two trained matrices that were
        # not tied would not be equal to the last bit.
        if untied and same_values(
            self, "output.weight", "tok_embeddings.weight", shapes["output.weight"]
        ):
            self.config = replace(config, tied_embedding=True)
            del self._shapes["output.weight"]

    def _header(self, name: str) -> TensorHeader:
        tensor = self._shards[0][name]
        shape = list(tensor.shape)
        dim = self._dims[name]
        if dim is not None and dim < len(shape):
            shape[dim] *= len(self._shards)
        return TensorHeader(tuple(shape), str(tensor.dtype), tensor.dtype in _FLOATS)

    def _stored(self, name: str, dim: int, start: int, length: int) -> torch.Tensor:
        cut = self._dims[name]
        if cut is None:
            return self._shards[0][name].narrow(dim, start, length)
        if cut != dim:
            pieces = [shard[name].narrow(dim, start, length) for shard in self._shards]
        else:
            pieces = []
            share = self._shards[0][name].shape[cut]
            for index, shard in enumerate(self._shards):
                first = max(start, index * share)
                end = min(start + length, (index + 1) * share)
                if first < end:
                    pieces.append(shard[name].narrow(cut, first - index * share, end - first))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=cut)


def _shard_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The shards in order, and what is wrong with the set of them."""
    numbers = {
        int(match[1]): path
        for path in sorted(folder.iterdir())
        if (match := _SHARD.fullmatch(path.name))
    }
    if not numbers:
        return [], [f"{folder}: no consolidated.NN.pth beside params.json"]
    problems = [
        f"{folder / f'consolidated.{number:02}.pth'}: no such file, but "
        f"{numbers[max(numbers)].name} is there: a shard is missing"
        for number in range(min(max(numbers), 1024))
        if number not in numbers
    ]
    files = [numbers[number] for number in sorted(numbers)]
    problems += first_few([p for file in files if (p := filled_file_problem(file, _KINDS))])
    return files, problems


def _load_shards(files: list[Path]) -> list[Shard]:
    shards, problems = [], []
    for file in files:
        try:
            shards.append(_load_shard(file))
        except UserError as error:
            problems += error.problems
    raise_if(problems)
    return shards


def _load_shard(path: Path) -> Shard:
    """Tensors of one shard by name, mapped from disk. The pickle inside is read by torch's
    restricted unpickler: what is not tensors in plain containers is refused, never run."""
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        # files older than torch 1.6 are no archives and cannot be mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch documents no set of exceptions for damaged files
        raise UserError(f"{path}: {_unreadable(error)}") from None
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{path}: expected tensors by name, found {type(loaded).__name__}")
    odd = [
        str(name)
        for name, tensor in loaded.items()
        if not (isinstance(name, str) and type(tensor) is torch.Tensor)
        or tensor.layout is not torch.strided
    ]
    raise_if(summarise(str(path), "not a plain tensor:", odd))
    return {name: tensor for name, tensor in loaded.items() if not is_rotary_buffer(name)}


def _unreadable(error: Exception) -> str:
    """One line out of torch's paragraphs, which recommend to run what is in the file."""
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError):
        names = _FORBIDDEN.findall(text)
        what = f" ({names[0]})" if names else ""
        return f"cannot be read: its pickle holds more than tensors{what}, and nothing of it is run"
    reason = text.partition("\n")[0].partition(". ")[0][:200] or type(error).__name__
    return f"cannot be read as a file of weights: {reason}"


def _check_archive(path: Path) -> None:
    """Refuse an archive that would unpack to more than the file: torch writes none compressed."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")


def _shard_problems(shards: list[Shard], files: list[Path], config: ModelConfig) -> list[str]:
    """Shards that differ in names, shapes or types, or are not as many as the model was cut in."""
    first = shards[0]
    where = str(files[0].parent)
    problems = summarise(where, "unexpected tensor", [n for n in first if from_meta(n) is None])
    for shard, file in zip(shards[1:], files[1:], strict=True):
        problems += summarise(str(file), "missing tensor", [n for n in first if n not in shard])
        problems += summarise(str(file), "unexpected tensor", [n for n in shard if n not in first])
        other = [
            f"{name}, {list(shard[name].shape)} {shard[name].dtype}, against "
            f"{list(first[name].shape)} {first[name].dtype}"
            for name in first
            if name in shard
            and (shard[name].shape != first[name].shape or shard[name].dtype != first[name].dtype)
        ]
        problems += summarise(str(file), f"differs from {files[0].name} in", other)
    query = first.get("layers.0.attention.wq.weight")
    rows = config.n_heads * config.head_dim
    if query is not None and query.dim() == 2 and query.shape[0] and not rows % query.shape[0]:
        cut_in = rows // query.shape[0]
        if cut_in != len(shards):
            problems.append(
                f"{where}: the model was cut into {cut_in} shards, found {len(shards)}: "
                "a shard is missing, or one is left from another model"
            )
    return problems


def _cut_along(name: str, shards: list[Shard], config: ModelConfig) -> int | None:
    """The dimension along which `name` is cut over the shards; None where each holds all of it."""
    if len(shards) == 1:
        return None
    tensor = shards[0][name]
    if name == "tok_embeddings.weight":
        return 0 if tensor.dim() == 2 and tensor.shape[1] == config.dim else 1
    return cut_along(name)


def cut_along(name: str) -> int | None:
    """The dimension along which Meta cuts a weight, other than the embedding, over its shards; None
    where each holds all of it."""
    layer, _, kind = name.rpartition(".")
    layer = layer.rpartition(".")[2]
    if layer in ("wo", "w2"):
        return 1 if kind == "weight" else None
    return None if layer.endswith("norm") else 0


def _sized_by_tensors(config: ModelConfig, headers: dict[str, TensorHeader]) -> ModelConfig:
    """Fill in the vocabulary, biases and tying, which only the tensors show."""
    vocab_size = config.vocab_size
    embedding = headers.get("tok_embeddings.weight")
    if vocab_size == 0 and embedding is not None and embedding.shape:
        vocab_size = max(1, embedding.shape[0])
    return replace(
        config,
        vocab_size=vocab_size,
        attention_bias="layers.0.attention.wq.bias" in headers,
        mlp_bias="layers.0.feed_forward.w1.bias" in headers,
        tied_embedding="output.weight" not in headers,
    )


def _check_width(
    config: ModelConfig, headers: dict[str, TensorHeader], params: Path
) -> tuple[ModelConfig, list[str]]:
    """One line, with the cause, for what would otherwise be a wrong shape in every layer; and the
    sizes as the tensors have them, to check the rest by."""
    header = headers.get("layers.0.feed_forward.w1.weight")
    if header is None or not header.shape or header.shape[0] == config.ffn_dim:
        return config, []
    problem = (
        f"{params}: dim, ffn_dim_multiplier and multiple_of give feed-forward width "
        f"{config.ffn_dim}, but w1 has {header.shape[0]} rows"
    )
    return replace(config, ffn_dim=header.shape[0]), [problem]
