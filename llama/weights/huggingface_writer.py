"""Hugging Face's layout, written: `config.json`, safetensors in files of at most 5 GB, and the
tokenizer's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from math import prod

import torch

from llama.files.atomic import begin_folder, write_in
from llama.files.json_text import json_text
from llama.files.safetensors import TensorFile
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.sidecar import eos_ids_of
from llama.weights.huggingface import INDEX, SINGLE, HuggingFaceReader
from llama.weights.huggingface_config import CONFIG, config_document
from llama.weights.names import to_huggingface
from llama.weights.shapes import expected_shapes
from llama.weights.tokenizer_beside import GENERATION, files_beside
from llama.weights.writing import FileWriter

FILE_BYTES = 5_000_000_000
"""Of the tensors of one file, at most; of a larger one only where a single tensor is larger."""


class HuggingFaceWriter(FileWriter):
    """One file after another, each with its tensors in the model's order."""

    interleaved = False
    _file: TensorFile | None = None

    def _store(self, name: str, tensor: torch.Tensor) -> None:
        if self._file is None:
            self._begin(tensor.dtype)
        names = self._files[self._current]
        assert self._file is not None
        self._file.add(to_huggingface(name), tensor)
        self._left -= 1
        if self._left == 0:
            self._file.finish()
            self._current += 1
            if self._current < len(self._files):
                self._open()
        assert name in names

    def _begin(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._shapes = expected_shapes(self.config)
        self._files = list(_cut(self._shapes, dtype.itemsize))
        self._partial = begin_folder(self.folder)
        self._current = 0
        self._open()

    def _open(self) -> None:
        names = self._files[self._current]
        tensors = [(to_huggingface(name), self._dtype, self._shapes[name]) for name in names]
        path = self._partial / self._file_name(self._current)
        self._file = TensorFile(path, tensors, {"format": "pt"})
        self._left = len(names)

    def _file_name(self, number: int) -> str:
        count = len(self._files)
        return SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"

    def finish(self) -> list[str]:
        assert self._current == len(self._files), "a weight has not come"
        if len(self._files) > 1:
            sizes = (prod(shape) for shape in self._shapes.values())
            index = {
                "metadata": {"total_size": sum(sizes) * self._dtype.itemsize},
                "weight_map": {
                    to_huggingface(name): self._file_name(number)
                    for number, names in enumerate(self._files)
                    for name in names
                },
            }
            self._write_json(INDEX, index)
        self._write_json(CONFIG, self._config_document())
        files, hints = files_beside(self.tokenizer, self.template, for_transformers=True)
        if self._loaded is not None:
            files[GENERATION], said = self._generation(self._loaded, files.get(GENERATION))
            hints += said
        self._appear(files)
        return [f"{self.folder} {hint}" for hint in hints]

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write_json(self, name: str, document: object) -> None:
        write_in(self._partial, name, _encoded(document))

    def _config_document(self) -> dict[str, object]:
        """The source's own where it has one: it says more than the sizes."""
        reader = self.source.reader
        beside = reader.files[0] if isinstance(reader, HuggingFaceReader) else None
        ids = {} if beside is not None else self._ids()
        return config_document(self.config, self._dtype, beside) | ids

    @cached_property
    def _loaded(self) -> Tokenizer | None:
        return None if self.tokenizer is None else load_tokenizer(self.tokenizer)

    def _ids(self) -> dict[str, object]:
        if self._loaded is None:
            return {}
        stops = self._stops(self._loaded)
        return {
            "bos_token_id": self._loaded.bos_id,
            "eos_token_id": stops[0] if len(stops) == 1 else stops,
        }

    def _stops(self, tokenizer: Tokenizer) -> list[int]:
        """What ends an answer here, of the tokens that the model can write."""
        return sorted(id_ for id_ in tokenizer.stop_ids if id_ < self.config.vocab_size)

    def _generation(self, tokenizer: Tokenizer, beside: bytes | None) -> tuple[bytes, list[str]]:
        """generation_config.json, and what to say of it. Many a base names EOS alone there, and
        transformers and vLLM would write on past the end of a turn, where `generate` stops."""
        if beside is None:
            return _encoded(self._ids()), []
        document: dict[str, object] = json.loads(beside.decode("utf-8-sig"))
        listed = eos_ids_of(document)
        missing = [id_ for id_ in self._stops(tokenizer) if id_ not in listed]
        if not missing:
            return beside, []
        document["eos_token_id"] = [*listed, *missing]
        # it would say that all follows from config.json, from which transformers may make it again
        document.pop("_from_model_config", None)
        texts = {id_: text for text, id_ in tokenizer.special_tokens.items()}
        named = ", ".join(f"{texts.get(id_, 'the token')} ({id_})" for id_ in missing)
        hint = f"ends answers with {named} too, which the base's {GENERATION} does not name"
        return _encoded(document), [hint]


def _encoded(document: object) -> bytes:
    return (json_text(document, indent=2) + "\n").encode()


def _cut(shapes: dict[str, tuple[int, ...]], item: int) -> Iterator[list[str]]:
    """The names of each file's tensors."""
    names: list[str] = []
    held = 0
    for name, shape in shapes.items():
        size = prod(shape) * item
        if names and held + size > FILE_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names
