"""An adapter as llama.cpp takes it beside a GGUF file of its base: `--lora adapter.gguf`.

Its fields and names are those that llama.cpp's own convert_lora_to_gguf.py writes. llama.cpp scales
the factors of a layer by alpha over their rank, with one alpha for all layers; where layers differ,
their B is multiplied by the rest. B's rows on wq and wk lie as those of the weights do in a GGUF
file (`llama.weights.rotary`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter

from llama.files.gguf_data import data_of
from llama.files.gguf_header import read_header
from llama.model.config import ModelConfig
from llama.parallel.side_path import LowRank
from llama.settings import LoRAOptions
from llama.weights import rotary
from llama.weights.names import from_gguf, to_gguf

FILE = "adapter.gguf"
_ALPHA = "adapter.lora.alpha"
_A, _B = ".lora_a", ".lora_b"


def write(path: Path, factors: Mapping[str, LowRank], config: ModelConfig) -> None:
    """`factors` by the native name of their layer, as `layers.0.attention.wq`; float32. Raises
    `OSError`."""
    first = next(iter(factors.values()))
    alpha = first.scale * first.a.shape[0]
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32(_ALPHA, alpha)
    for layer, pair in factors.items():
        name = f"{layer}.weight"
        rest = pair.scale * pair.a.shape[0] / alpha
        b = pair.b.float() * rest
        if rotary.is_rotary(name):
            b = rotary.halves_to_interleaved(b, config.head_dim)
        for end, tensor in ((_A, pair.a.float()), (_B, b)):
            data = data_of(np.ascontiguousarray(tensor.detach().numpy()))
            writer.add_tensor(f"{to_gguf(name)}{end}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path, config: ModelConfig) -> tuple[dict[str, LoRAOptions], dict[str, torch.Tensor]]:
    """The options and the tensors, by native name, of each layer of a file that `write` made."""
    header = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    alpha = float(header.metadata[_ALPHA])
    layers: dict[str, LoRAOptions] = {}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in header.tensors.items():
        native = from_gguf(name.removesuffix(_A).removesuffix(_B))
        assert native is not None, name
        layer = native.removesuffix(".weight")
        raw = np.array(data[tensor.offset : tensor.offset + tensor.n_bytes])
        value = torch.from_numpy(raw.view(np.float32).reshape(tensor.shape))
        if name.endswith(_A):
            target = layer.rpartition(".")[2]
            layers[layer] = LoRAOptions(value.shape[0], alpha, 0.0, (target,))
        elif rotary.is_rotary(native):
            value = rotary.interleaved_to_halves(value, config.head_dim)
        state[f"{layer}.lora.{name[-1]}"] = value
    return layers, state
