"""Meta's layout, written: `params.json` and what it cannot say, a `consolidated.NN.pth` for each
shard, the tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from llama.files.atomic import begin_folder
from llama.files.json_text import json_text
from llama.files.torch_archive import TorchArchive
from llama.model.config import ModelConfig
from llama.model.scaling import Llama3Scaling
from llama.tokenizer.writing import JSON_FILE
from llama.weights.meta import cut_along
from llama.weights.meta_config import POSITIONS, params_document, positions_document
from llama.weights.open_model import ModelSource
from llama.weights.shapes import expected_shapes
from llama.weights.tokenizer_beside import files_beside
from llama.weights.writing import FileWriter

_EMBEDDING, _OUTPUT = "tok_embeddings.weight", "output.weight"
_LLAMA3_VOCABULARY = 128_000
"""From which size on the embedding is cut by rows, as Llama 3's is, and not by columns."""


class MetaWriter(FileWriter):
    """All shards at once, each tensor cut over them. A tied matrix goes by both its names, as in
    Meta's own tied releases; where the embedding is cut by columns it is there a second time, cut
    by rows as every output matrix is."""

    interleaved = True
    shards = 1
    """How many files each layer is cut over."""

    def __init__(
        self, folder: Path, config: ModelConfig, source: ModelSource, tokenizer: Path | None
    ) -> None:
        super().__init__(folder, config, source, tokenizer)
        self._archives: list[TorchArchive] = []

    @staticmethod
    def misfits(config: ModelConfig) -> list[str]:
        problems = []
        if config.head_dim * config.n_heads != config.dim:
            problems.append(
                f"params.json has no field for a head dimension of {config.head_dim} that is not "
                f"dim / n_heads = {config.dim} / {config.n_heads}"
            )
        scaling = config.rope_scaling
        if scaling is not None and not (
            isinstance(scaling, Llama3Scaling)
            and (scaling.low_freq_factor, scaling.original_max_position) == (1.0, 8192)
        ):
            problems.append(f"params.json has no field for this rotary scaling: {scaling}")
        return problems

    @staticmethod
    def shard_problems(config: ModelConfig, shards: int) -> list[str]:
        """What of a model of these sizes cannot be cut into `shards`."""
        sizes = {
            "query heads": config.n_heads,
            "key/value heads": config.n_kv_heads,
            "feed-forward width": config.ffn_dim,
            "vocabulary": config.vocab_size,
            "width": config.dim,
        }
        return [
            f"--shards: {shards} does not divide the model's {what}, {size}"
            for what, size in sizes.items()
            if size % shards
        ]

    def _store(self, name: str, tensor: torch.Tensor) -> None:
        if not self._archives:
            self._begin(tensor.dtype)
        self._cut(name, tensor)
        if name == _EMBEDDING and self._is_cut_twice():
            self._cut(_OUTPUT, tensor)

    def _cut(self, name: str, tensor: torch.Tensor) -> None:
        dim = self._dim(name)
        for shard, archive in enumerate(self._archives):
            if dim is None:
                archive.add(name, tensor)
            else:
                archive.add(name, tensor.chunk(self.shards, dim)[shard])

    def _dim(self, name: str) -> int | None:
        """The dimension along which the shards cut it, if they do."""
        if self.shards == 1:
            return None
        if name == _EMBEDDING:
            return 0 if self.config.vocab_size >= _LLAMA3_VOCABULARY else 1
        return cut_along(name)

    def _begin(self, dtype: torch.dtype) -> None:
        self._partial = begin_folder(self.folder)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in expected_shapes(self.config).items():
            shapes[name] = self._share(shape, self._dim(name))
            if name == _EMBEDDING and self._is_cut_twice():
                shapes[_OUTPUT] = self._share(shape, self._dim(_OUTPUT))
        tied = self.config.tied_embedding and _OUTPUT not in shapes
        aliases = {_OUTPUT: _EMBEDDING} if tied else {}
        for shard in range(self.shards):
            path = self._partial / f"consolidated.{shard:02}.pth"
            self._archives.append(TorchArchive(path, shapes, dtype, aliases))

    def _is_cut_twice(self) -> bool:
        """Cut by columns, the embedding's shares are no shares of the output matrix, by rows."""
        return self.config.tied_embedding and self._dim(_EMBEDDING) == 1

    def _share(self, shape: tuple[int, ...], dim: int | None) -> tuple[int, ...]:
        if dim is None:
            return shape
        return tuple(n // self.shards if axis == dim else n for axis, n in enumerate(shape))

    def finish(self) -> list[str]:
        for archive in self._archives:
            archive.finish()
        files, hints = files_beside(self.tokenizer, self.template, for_transformers=False)
        if JSON_FILE in files:
            hints.append(
                f"holds its tokenizer as {JSON_FILE}, which Meta's own code does not read: there "
                "is no tokenizer.model of it"
            )
        documents = {
            "params.json": params_document(self.config),
            POSITIONS: positions_document(self.config),
        }
        sizes = {
            name: (json_text(document, indent=2) + "\n").encode()
            for name, document in documents.items()
            if document is not None
        }
        self._appear(sizes | files)
        return [f"{self.folder} {hint}" for hint in hints]

    def _let_go(self) -> None:
        for archive in self._archives:
            archive.close()
