"""Tiny models written to disk in each format, with the same weights.

`state` is always native: names and layout as inside `llama.model`. The layouts are spelt out row by
row here, and the names go through `llama.weights.names`, which its own tests hold against the
package `gguf` and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llama.model.config import ModelConfig
from llama.model.scaling import LinearScaling, Llama3Scaling
from llama.weights.names import from_huggingface, to_gguf
from llama.weights.open_model import ModelSource
from llama.weights.shapes import expected_shapes

State = dict[str, torch.Tensor]

ROOT = Path(__file__).parents[2]
"""The project's root."""

TINY = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=8,
    n_kv_heads=4,
    head_dim=8,
    ffn_dim=192,
    vocab_size=96,
    norm_eps=1e-5,
    rope_theta=10000.0,
    max_seq_len=128,
)
"""Shards over 1, 2 and 4; its widths follow Meta's rule and hold whole GGUF blocks of 32."""

LLAMA31_SCALING = Llama3Scaling(8.0, 1.0, 4.0, 8192)


def random_state(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """Random weights, norms and biases too, so that none can stand in for another."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.1 + ("norm" in name)).to(dtype)
        for name, shape in expected_shapes(config).items()
    }


class _NoFiles:
    """A reader of no files, as of a format that has nothing of what goes with the weights."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.files: list[Path] = []


def of_no_files(config: ModelConfig) -> ModelSource:
    """What a writer is told that weights of these sizes come from."""
    return ModelSource("tiny", _NoFiles(config), None)  # type: ignore[arg-type]


def huggingface_config(config: ModelConfig) -> Any:
    """The `transformers.LlamaConfig` of the same sizes."""
    from transformers import LlamaConfig

    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if scaling := config.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return LlamaConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.ffn_dim,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.max_seq_len,
        tie_word_embeddings=config.tied_embedding,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        rope_parameters=rope,
    )


def write_huggingface(
    folder: Path,
    config: ModelConfig,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
) -> State:
    """A folder as transformers itself writes it, in float32; the weights are `random_state`'s of
    `seed`, rounded to `dtype`. Returns them."""
    state = random_state(config, seed, dtype)
    model = transformers_model(config, state.__getitem__, dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return state


def transformers_model(
    config: ModelConfig,
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype = torch.float32,
) -> Any:
    """transformers' LLaMA of the same sizes with the weights that `read` gives for native names."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(huggingface_config(config)).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            native = from_huggingface(name)
            assert native is not None, name
            parameter.copy_(read(native))
    return model


def interleave(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows from two halves per head to adjacent pairs, one at a time, by definition."""
    result = torch.empty_like(tensor)
    half = head_dim // 2
    for head in range(tensor.shape[0] // head_dim):
        for i in range(half):
            result[head * head_dim + 2 * i] = tensor[head * head_dim + i]
            result[head * head_dim + 2 * i + 1] = tensor[head * head_dim + half + i]
    return result


def interleaved_state(config: ModelConfig, state: State) -> State:
    """`state` with wq and wk as Meta and GGUF keep them."""
    return {
        name: interleave(tensor, config.head_dim) if ".wq." in name or ".wk." in name else tensor
        for name, tensor in state.items()
    }


def meta_params(config: ModelConfig) -> dict[str, Any]:
    """`params.json` of TINY's relatives: `multiple_of` is chosen to give their width."""
    params = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "multiple_of": config.ffn_dim,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": -1,
        "max_seq_len": config.max_seq_len,
    }
    if config.rope_scaling:
        assert isinstance(config.rope_scaling, Llama3Scaling)
        params |= {"use_scaled_rope": True, "rope_scaling_factor": config.rope_scaling.factor}
    return params


def write_meta(
    folder: Path, config: ModelConfig, state: State, shards: int = 1, embedding_dim: int = 0
) -> None:
    """A folder in Meta's layout, cut into `shards`. `embedding_dim` is the dimension along which
    `tok_embeddings` is cut: 1 in LLaMA 1 and 2, 0 in Llama 3. A tied matrix goes by both names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(meta_params(config)))
    parts = cut_meta(interleaved_state(config, state), shards, embedding_dim)
    for shard, part in enumerate(parts):
        if config.tied_embedding:
            rows = state["tok_embeddings.weight"].chunk(shards)[shard].clone()
            part["output.weight"] = rows if embedding_dim else part["tok_embeddings.weight"]
        part["rope.freqs"] = torch.ones(config.head_dim // 2)
        torch.save(part, folder / f"consolidated.{shard:02}.pth")


def cut_meta(state: State, shards: int, embedding_dim: int) -> list[State]:
    """A state in Meta's names and layout, cut as Meta cuts it."""
    parts: list[State] = [{} for _ in range(shards)]
    for name, tensor in state.items():
        cut = _meta_cut(name, embedding_dim)
        for shard, part in enumerate(parts):
            part[name] = (tensor if cut is None else tensor.chunk(shards, dim=cut)[shard]).clone()
    return parts


def _meta_cut(name: str, embedding_dim: int) -> int | None:
    if name == "tok_embeddings.weight":
        return embedding_dim
    if "norm" in name or "rope" in name or name.endswith(("wo.bias", "w2.bias")):
        return None
    return 1 if ".wo." in name or ".w2." in name else 0


def write_gguf(
    path: Path,
    config: ModelConfig,
    state: State,
    kind: str = "F32",
    encode: Callable[[Any, Any], Any] | None = None,
) -> None:
    """A GGUF file without a tokenizer; matrices are stored as `kind`, e.g. `Q8_0`. `encode` gives
    the stored bytes of an array in a type, where `gguf` cannot quantise to it."""
    import gguf

    encode = encode or gguf.quants.quantize

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"])  # arrays are to be stepped over
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in interleaved_state(config, state).items():
        type_, data = gguf.GGMLQuantizationType.F32, tensor.float().numpy()
        if tensor.dim() == 2:
            type_, data = quantised, encode(data, quantised)
        writer.add_tensor(to_gguf(name), data, raw_dtype=type_)
    if isinstance(config.rope_scaling, LinearScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    elif config.rope_scaling:
        writer.add_tensor("rope_freqs.weight", llama31_divisors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama31_divisors(config: ModelConfig) -> Any:
    """`rope_freqs.weight` by llama.cpp's rule, a frequency at a time."""
    import math

    import numpy as np

    scaling = config.rope_scaling
    assert scaling is not None
    divisors = []
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * math.pi * config.rope_theta ** (i / config.head_dim)
        if wavelength < scaling.original_max_position / scaling.high_freq_factor:
            divisors.append(1.0)
        elif wavelength > scaling.original_max_position / scaling.low_freq_factor:
            divisors.append(scaling.factor)
        else:
            smooth = scaling.original_max_position / wavelength - scaling.low_freq_factor
            smooth /= scaling.high_freq_factor - scaling.low_freq_factor
            divisors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(divisors, dtype=np.float32)


def tied(config: ModelConfig) -> ModelConfig:
    return replace(config, tied_embedding=True)
