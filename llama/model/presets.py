"""The published LLaMA shapes, by name.

Sources: Meta's `params.json` and Hugging Face's `config.json` of each release. LLaMA 1 normalises
with eps 1e-6, but its 65B was released with 1e-5. Llama 3.1's 405B has 8 key/value heads in every
release but the first, which repeated them to 16.
"""

from __future__ import annotations

from dataclasses import replace

from llama.model.config import ModelConfig
from llama.model.scaling import Llama3Scaling


def _shape(
    dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int, norm_eps: float = 1e-5
) -> ModelConfig:
    """A LLaMA-1 model of these widths; later generations replace what they changed."""
    return ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads,
        ffn_dim=ffn_dim,
        vocab_size=32000,
        norm_eps=norm_eps,
    )


def _llama2(shape: ModelConfig) -> ModelConfig:
    return replace(shape, max_seq_len=4096)


def _llama3(shape: ModelConfig) -> ModelConfig:
    return replace(shape, vocab_size=128256, rope_theta=500000.0, max_seq_len=8192)


def _llama31(shape: ModelConfig, factor: float = 8.0) -> ModelConfig:
    scaling = Llama3Scaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
    )
    return replace(_llama3(shape), rope_scaling=scaling, max_seq_len=131072)


def _llama32(shape: ModelConfig) -> ModelConfig:
    return replace(_llama31(shape, factor=32.0), tied_embedding=True)


PRESETS: dict[str, ModelConfig] = {
    "llama-7b": _shape(4096, 32, 32, 32, 11008, 1e-6),
    "llama-13b": _shape(5120, 40, 40, 40, 13824, 1e-6),
    "llama-30b": _shape(6656, 60, 52, 52, 17920, 1e-6),
    "llama-65b": _shape(8192, 80, 64, 64, 22016, 1e-5),
    "llama-2-7b": _llama2(_shape(4096, 32, 32, 32, 11008)),
    "llama-2-13b": _llama2(_shape(5120, 40, 40, 40, 13824)),
    "llama-2-70b": _llama2(_shape(8192, 80, 64, 8, 28672)),
    "llama-3-8b": _llama3(_shape(4096, 32, 32, 8, 14336)),
    "llama-3-70b": _llama3(_shape(8192, 80, 64, 8, 28672)),
    "llama-3.1-8b": _llama31(_shape(4096, 32, 32, 8, 14336)),
    "llama-3.1-70b": _llama31(_shape(8192, 80, 64, 8, 28672)),
    "llama-3.1-405b": _llama31(_shape(16384, 126, 128, 8, 53248)),
    "llama-3.2-1b": _llama32(_shape(2048, 16, 32, 8, 8192)),
    "llama-3.2-3b": _llama32(_shape(3072, 28, 24, 8, 8192)),
    "smollm2-135m": replace(
        _shape(576, 30, 9, 3, 1536),
        vocab_size=49152,
        rope_theta=100000.0,
        max_seq_len=8192,
        tied_embedding=True,
    ),
}
"""Every shape that `random:NAME` and the planner know."""
