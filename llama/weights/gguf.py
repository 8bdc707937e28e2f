"""GGUF: one file with sizes, tokenizer and weights, often quantised in blocks along the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from llama.errors import UserError, raise_if
from llama.files.gguf_header import GGUFHeader, GGUFTensor, read_header
from llama.files.inputs import filled_file_problem
from llama.files.kinds import GGUF
from llama.model.config import ModelConfig
from llama.model.rope import inverse_frequencies
from llama.model.scaling import Llama3Scaling, RopeScaling
from llama.weights.fields import Fields, shorten
from llama.weights.names import from_gguf, to_gguf
from llama.weights.reader import FileReader
from llama.weights.rope_fields import read_gguf_scaling
from llama.weights.shapes import TensorHeader, header_problems, size_problems, summarise

ROPE_FACTORS = "rope_freqs.weight"
_CHUNK_ELEMENTS = 1 << 22
_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_OTHER_ARITHMETIC = (
    "expert_count",
    "attention.sliding_window",
    "attention.scale",
    "attention.output_scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.temperature_length",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "use_parallel_residual",
    "rope.dimension_sections",
    "swin_norm",
)
"""Fields that, set, mean another computation than this model's."""
_HARMLESS = ("tensor_data_layout", "expert_used_count")
"""Fields that change nothing here; without experts none is used."""


class GGUFReader(FileReader):
    """Reads one GGUF file, mapped, as float32: rows, and blocks within rows, are dequantised only
    where the slice needs them. Raises UserError with all that is wrong with the header."""

    interleaved = True

    def __init__(self, path: Path) -> None:
        if problem := filled_file_problem(path, (GGUF,)):
            raise UserError(problem)
        try:
            header = read_header(path)
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: cannot be read as GGUF: {error}") from None
        self._data = np.memmap(path, dtype=np.uint8, mode="r")
        self._tensors = {
            native: tensor
            for name, tensor in header.tensors.items()
            if (native := from_gguf(name)) is not None
        }
        config, problems = _read_config(header, str(path))
        factors, rope_problems = self._rope_factors(header, config, path)
        if factors and config.rope_scaling:
            rope_problems.append(f"{path}: both {ROPE_FACTORS} and llama.rope.scaling are there")
        unknown = [name for name in header.tensors if not from_gguf(name) and name != ROPE_FACTORS]
        headers = {
            native: TensorHeader(tensor.shape, tensor.kind.name, _can_dequantize(tensor.kind))
            for native, tensor in self._tensors.items()
        }
        problems += rope_problems + size_problems(config, str(path))
        problems += summarise(str(path), "unexpected tensor", unknown)
        raise_if(problems + header_problems(config, headers, str(path), to_gguf))
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        scaling = factors or config.rope_scaling
        super().__init__(replace(config, rope_scaling=scaling), shapes, [path])

    def _rope_factors(
        self, header: GGUFHeader, config: ModelConfig, path: Path
    ) -> tuple[RopeScaling | None, list[str]]:
        """llama.cpp writes Llama 3.1's scaling out as one divisor per frequency. It is accepted
        where the published scaling gives those very divisors."""
        tensor = header.tensors.get(ROPE_FACTORS)
        if tensor is None:
            return None, []
        if tensor.shape == (config.head_dim // 2,) and tensor.kind is GGMLQuantizationType.F32:
            divisors = self._dequantize(tensor, 1, 0, tensor.shape[0]).flatten()
            if torch.equal(divisors, torch.ones_like(divisors)):
                return None, []
            scaling = Llama3Scaling(float(divisors.max()), 1.0, 4.0, 8192)
            if torch.allclose(divisors, rope_divisors(config, scaling), rtol=1e-3, atol=0):
                return scaling, []
        return None, [f"{path}: {ROPE_FACTORS} holds another rotary scaling than Llama 3.1's"]

    def stored_type(self, name: str) -> torch.dtype | None:
        """The type in which the file has a weight, which is read as float32 whatever it is; None
        where it is quantised."""
        return _PLAIN.get(self._tensors[name].kind)

    def _stored(self, name: str, dim: int, start: int, length: int) -> torch.Tensor:
        tensor = self._tensors[name]
        if len(tensor.shape) == 1:
            return self._dequantize(tensor, 1, start, length)[0]
        return self._dequantize(tensor, dim, start, length)

    def _dequantize(self, tensor: GGUFTensor, dim: int, start: int, length: int) -> torch.Tensor:
        """A float32 slice, a few rows at a time: dequantising needs several times its result."""
        block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        raw = self._data[tensor.offset : tensor.offset + tensor.n_bytes]
        raw = raw.reshape(-1, tensor.shape[-1] // block * block_bytes)
        trim = slice(None)
        if dim == 0:
            raw = raw[start : start + length]
        else:
            first, end = start // block, -(-(start + length) // block)
            raw = raw[:, first * block_bytes : end * block_bytes]
            trim = slice(start - first * block, start - first * block + length)
        columns = length if dim else tensor.shape[-1]
        result = torch.empty(raw.shape[0], columns)
        step = max(1, _CHUNK_ELEMENTS // max(1, tensor.shape[-1]))
        for row in range(0, raw.shape[0], step):
            part = dequantize(np.array(raw[row : row + step]), tensor.kind)
            result[row : row + step] = torch.from_numpy(part)[:, trim]
        return result


def rope_divisors(config: ModelConfig, scaling: RopeScaling) -> torch.Tensor:
    """`[head_dim / 2]` float32: by what `scaling` divides each rotary frequency."""
    plain = inverse_frequencies(replace(config, rope_scaling=None))
    return plain / scaling.stretch(plain, config.rope_theta)


def _can_dequantize(kind: GGMLQuantizationType) -> bool:
    block_bytes = GGML_QUANT_SIZES[kind][1]
    try:
        dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _read_config(header: GGUFHeader, where: str) -> tuple[ModelConfig, list[str]]:
    """The sizes in the metadata, and what is wrong with them."""
    metadata = {key: _as_written(value) for key, value in header.metadata.items()}
    fields = Fields(metadata, where, prefix="llama.")
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise UserError(f"{where}: expected general.architecture 'llama', found {shorten(kind)}")
    if metadata.get("split.count") not in (None, 0, 1):
        raise UserError(f"{where}: one part of several: join them with llama-gguf-split --merge")
    dim, n_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    head_dim = fields.integer("attention.key_length", max(1, dim // n_heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(key, head_dim) != head_dim:
            fields.problems.append(f"{where}: llama.{key} must be the head dimension, {head_dim}")
    if metadata.get("general.type") not in (None, "model"):
        found = shorten(metadata["general.type"])
        raise UserError(f"{where}: expected general.type 'model', found {found}")
    if fields.given("attention.causal") is False:
        fields.problems.append(f"{where}: llama.attention.causal = false is not supported")
    for key in _OTHER_ARITHMETIC:
        fields.refuse(key)
    embedding = header.tensors.get("token_embd.weight")
    positions = fields.integer("context_length", 2048)
    config = ModelConfig(
        dim=dim,
        n_layers=fields.integer("block_count"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        ffn_dim=fields.integer("feed_forward_length"),
        vocab_size=fields.integer("vocab_size", embedding.shape[0] if embedding else None),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", 1e-5),
        rope_theta=fields.number("rope.freq_base", 10000.0),
        rope_scaling=read_gguf_scaling(fields, positions),
        max_seq_len=positions,
        tied_embedding="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
    )
    if not fields.problems:
        fields.note_unread(*_HARMLESS)
    return config, fields.problems


def _as_written(value: object) -> object:
    """A float as the shortest decimal that gives the same float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
