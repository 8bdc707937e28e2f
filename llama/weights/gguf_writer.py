"""GGUF, written: one file with sizes, weights, tokenizer and chat template, for llama.cpp; and a
`Modelfile` beside it, for Ollama, with the same template in Go's words where there are such.

Fields and their meaning: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize

from llama.files.atomic import begin_folder
from llama.files.gguf_data import data_of
from llama.model.config import ModelConfig
from llama.model.scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
    yarn_attention_factor,
)
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.gguf_vocabulary import TEMPLATE
from llama.tokenizer.go_template import begins_with_bos, go_template
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.named_templates import DEFAULT
from llama.tokenizer.writing import (
    MODEL_FILE,
    gguf_fields,
    gguf_problem,
    listed,
    without_row,
)
from llama.weights.gguf import ROPE_FACTORS, rope_divisors
from llama.weights.modelfile import NAME as MODELFILE
from llama.weights.modelfile import is_sayable, modelfile
from llama.weights.names import to_gguf
from llama.weights.shapes import expected_shapes
from llama.weights.writing import FileWriter

FILE = "model.gguf"
_TYPES = {
    torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
_PLAIN = {kind: dtype for dtype, (kind, _) in _TYPES.items()}
_QUANTISED = {"q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0)}
_CHUNK_ELEMENTS = 1 << 22


class GGUFFileWriter(FileWriter):
    """Matrices in the type of the weights that come, or quantised; vectors in float32, as
    llama.cpp has them. A matrix whose rows are no whole blocks stays as it is."""

    interleaved = True
    quantize: str | None = None
    """A key of `_QUANTISED`, or None."""
    _writer: GGUFWriter | None = None

    @staticmethod
    def misfits(config: ModelConfig) -> list[str]:
        scaling = config.rope_scaling
        if isinstance(scaling, DynamicScaling):
            return ["llama.cpp has no dynamic rotary scaling"]
        if isinstance(scaling, YarnScaling) and not scaling.truncate:
            return ["llama.cpp has no yarn scaling whose ramp ends between two frequencies"]
        if isinstance(scaling, Llama3Scaling) and (
            (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position)
            != (1.0, 4.0, 8192)
        ):
            return [f"a GGUF file says Llama 3.1's own rotary scaling alone, not {scaling}"]
        return []

    def _store(self, name: str, tensor: torch.Tensor) -> None:
        if self._writer is None:
            self._begin(tensor.dtype)
        kind = self._kinds[name]
        assert self._writer is not None
        if (plain := _PLAIN.get(kind)) is not None:
            data = tensor.to(plain).contiguous().view(torch.uint8).numpy()
        else:
            data = _in_blocks(tensor, kind)
        self._writer.write_tensor_data(data_of(data))

    def _begin(self, dtype: torch.dtype) -> None:
        self._partial = begin_folder(self.folder)
        whole, file_type = _TYPES[dtype]
        wanted = whole
        if self.quantize is not None:
            wanted, file_type = _QUANTISED[self.quantize]
        writer = self._writer = GGUFWriter(None, "llama")
        self._say_sizes(writer, file_type)
        self._say_tokenizer(writer)
        self._kinds: dict[str, GGMLQuantizationType] = {}
        for name, shape in expected_shapes(self.config).items():
            block = GGML_QUANT_SIZES[wanted][0]
            kind = wanted if shape[-1] % block == 0 else whole
            self._kinds[name] = kind if len(shape) > 1 else GGMLQuantizationType.F32
            _declare(writer, to_gguf(name), shape, self._kinds[name])
        divisors = self._divisors()
        if divisors is not None:
            _declare(writer, ROPE_FACTORS, tuple(divisors.shape), GGMLQuantizationType.F32)
        writer.open_output_file(self._partial / FILE)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()

    def _divisors(self) -> torch.Tensor | None:
        scaling = self.config.rope_scaling
        return rope_divisors(self.config, scaling) if isinstance(scaling, Llama3Scaling) else None

    def _say_sizes(self, writer: GGUFWriter, file_type: int) -> None:
        config = self.config
        writer.add_type("model")
        writer.add_name(Path(self.source.name).name or self.source.name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(2)
        writer.add_block_count(config.n_layers)
        writer.add_context_length(config.max_seq_len)
        writer.add_embedding_length(config.dim)
        writer.add_feed_forward_length(config.ffn_dim)
        writer.add_head_count(config.n_heads)
        writer.add_head_count_kv(config.n_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_vocab_size(config.vocab_size)
        for key, value in _scaling_fields(config).items():
            _add(writer, key, value)

    def _say_tokenizer(self, writer: GGUFWriter) -> None:
        assert self.tokenizer is not None
        tokenizer = load_tokenizer(named_tokenizer(self.tokenizer))
        rows = self.config.vocab_size
        for key, value in gguf_fields(tokenizer, rows).items():
            _add(writer, key, value)
        templates = tokenizer.chat_templates
        if self.template is not None:
            templates = {DEFAULT: self.template}
        for name, source in templates.items():
            writer.add_string(TEMPLATE if name == DEFAULT else f"{TEMPLATE}.{name}", source)
        texts = {id_: text for text, id_ in tokenizer.special_tokens.items()}
        stops = [texts[id_] for id_ in sorted(tokenizer.stop_ids) if id_ in texts and id_ < rows]
        source = templates.get(DEFAULT)
        template = go_template(source, tokenizer) if source is not None else None
        self._modelfile = modelfile(FILE, template, stops)
        self._hints = _hints(source, template, tokenizer)
        if left_out := without_row(tokenizer, rows):
            self._hints.append(
                f"{FILE}: leaves out what the embedding has no row for: {listed(left_out)}"
            )

    def finish(self) -> list[str]:
        assert self._writer is not None
        divisors = self._divisors()
        if divisors is not None:
            self._writer.write_tensor_data(data_of(divisors.numpy()))
        self._writer.close()
        self._writer = None
        with (self._partial / FILE).open("rb") as file:
            os.fsync(file.fileno())
        self._appear({MODELFILE: self._modelfile.encode()})
        return [f"{self.folder}/{hint}" for hint in self._hints]

    def _let_go(self) -> None:
        if self._writer is not None and self._writer.fout is not None:
            self._writer.close()


def named_tokenizer(path: Path) -> Path:
    """Of a tokenizer's folder the file that GGUF has words for. A tokenizer.json that was made of a
    sentencepiece model lacks the scores by which llama.cpp merges: there the model is taken."""
    model = path / MODEL_FILE
    if path.is_dir() and model.exists() and gguf_problem(load_tokenizer(path)) is not None:
        return model
    return path


def _hints(source: str | None, template: str | None, tokenizer: Tokenizer) -> list[str]:
    """By file, what of the chat template `source` other programs will not do as it says."""
    hints: list[str] = []
    if source is None:
        return hints
    if template is None or not is_sayable(template):
        hints.append(
            f"{MODELFILE}: holds no TEMPLATE: Go has no words for this chat template. Ollama from "
            f"0.30 on takes the one in {FILE} unless it knows a similar one, and an earlier one "
            "none at all: look at its prompts first (OLLAMA_DEBUG=1)"
        )
    if tokenizer.text_begins and not begins_with_bos(source, tokenizer):
        hints.append(
            f"{FILE}: the chat template does not begin with BOS, and llama.cpp and Ollama put one "
            "before it"
        )
    return hints


def _in_blocks(tensor: torch.Tensor, kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """The bytes of a matrix in `kind`, made of some rows at a time."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    rows, columns = tensor.shape
    data = np.empty((rows, columns // block * block_bytes), np.uint8)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for row in range(0, rows, step):
        data[row : row + step] = quantize(tensor[row : row + step].float().numpy(), kind)
    return data


def _declare(
    writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> None:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    elements = int(np.prod(shape))
    writer.add_tensor_info(
        name, shape, np.dtype(np.float32), elements // block * block_bytes, raw_dtype=kind
    )


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _scaling_fields(config: ModelConfig) -> dict[str, str | int | float]:
    """`llama.rope.scaling.*`; Llama 3.1's is a tensor instead."""
    scaling, prefix = config.rope_scaling, "llama.rope.scaling."
    if isinstance(scaling, LinearScaling):
        return {f"{prefix}type": "linear", f"{prefix}factor": float(scaling.factor)}
    if isinstance(scaling, YarnScaling):
        return {
            f"{prefix}type": "yarn",
            f"{prefix}factor": float(scaling.factor),
            f"{prefix}original_context_length": scaling.original_max_position,
            f"{prefix}yarn_beta_fast": float(scaling.beta_fast),
            f"{prefix}yarn_beta_slow": float(scaling.beta_slow),
            f"{prefix}attn_factor": scaling.attention_factor
            / yarn_attention_factor(scaling.factor),
        }
    return {}
