"""Adapters as PEFT folders: `adapter_model.safetensors` and `adapter_config.json`, both ways.

Rotary halves are laid out inside as Hugging Face has them, so no row is moved on the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from llama.adapters.adapter import Tensors
from llama.adapters.kinds import KINDS, kind_of
from llama.errors import UserError, raise_if
from llama.files.json_text import json_text
from llama.files.safetensors import FLOATS, open_safetensors
from llama.settings import LoRAOptions
from llama.weights.names import from_huggingface, to_huggingface
from llama.weights.open_model import published
from llama.weights.reader import fingerprint_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_NATIVE = {peft: name for kind in KINDS.values() for name, peft in kind.PEFT_TENSORS.items()}
"""A tensor's name on its layer, in PEFT's words to ours."""
_PEFT = {name: peft for peft, name in _NATIVE.items()}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is, apart from its weights."""

    options: LoRAOptions
    base_model: str
    layers: int | None = None
    """Blocks of the base, where not every one of them may have an adapter on each of the targets;
    else None."""


def to_peft(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`layers.0.attention.wq.lora.a` to PEFT's
    `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`."""
    return {peft_name(name): tensor for name, tensor in state.items()}


def peft_name(name: str) -> str:
    """PEFT's name of the tensor `name`."""
    layer, _, tensor = name.partition(".lora.")
    return f"{_PREFIX}{_module_to_huggingface(layer)}.{_PEFT[tensor]}"


def from_peft(state: dict[str, torch.Tensor], file: str) -> dict[str, torch.Tensor]:
    """The inverse of `to_peft`. Raises `UserError` for a name that is no LoRA factor of a LLaMA."""
    tensors = "|".join(map(re.escape, _NATIVE))
    pattern = re.compile(rf"{re.escape(_PREFIX)}(.+)\.({tensors})")
    renamed, problems = {}, []
    for name, tensor in state.items():
        match = pattern.fullmatch(name)
        native = from_huggingface(f"{match[1]}.weight") if match else None
        if match is None or native is None:
            problems.append(f"{file}: {name} is not a LoRA factor of a LLaMA layer")
            continue
        renamed[f"{native.removesuffix('.weight')}.lora.{_NATIVE[match[2]]}"] = tensor
    if problems:
        raise UserError(problems)
    return renamed


def _module_to_huggingface(layer: str) -> str:
    return to_huggingface(f"{layer}.weight").removesuffix(".weight")


def contents(state: dict[str, torch.Tensor], config: AdapterConfig) -> dict[str, bytes]:
    """Name to content of a PEFT folder's files. `state` is whole, not sharded, with what an adapter
    keeps and does not train; it is written in float32."""
    state = _of_each_layer(state, kind_of(config.options).written)
    options = config.options
    document: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": published(config.base_model),
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": _target_modules(state, config.layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **kind_of(options).to_peft(options),
    }
    tensors = {name: t.float().contiguous() for name, t in sorted(to_peft(state).items())}
    return {
        WEIGHTS: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        CONFIG: (json_text(document, indent=2) + "\n").encode(),
    }


def _target_modules(state: Tensors, layers: int | None) -> list[str]:
    """The last part of each adapted module's name, such as `q_proj`, which means that of every
    block; where it is not adapted in all `layers` of them, the whole name of each."""
    modules = {_module_to_huggingface(name.partition(".lora.")[0]) for name in state}
    short = {module.rpartition(".")[2] for module in modules}
    everywhere = layers is None or len(modules) == layers * len(short)
    return sorted(short if everywhere else modules)


def with_published_base(content: bytes) -> bytes:
    """`adapter_config.json` with its base's name as other programs know it: what was written before
    that was done may have ours."""
    document = json.loads(content)
    name = document.get("base_model_name_or_path")
    if not isinstance(name, str) or published(name) == name:
        return content
    document["base_model_name_or_path"] = published(name)
    return (json_text(document, indent=2) + "\n").encode()


def held(state: Tensors, options: LoRAOptions) -> Tensors:
    """The tensors of a PEFT folder that an adapter of `options` wrote, as that adapter has them."""
    return _of_each_layer(state, kind_of(options).held)


def _of_each_layer(state: Tensors, change: Callable[[Tensors], Tensors]) -> Tensors:
    """`state` with the tensors of each layer changed together, by their names there."""
    layers: dict[str, Tensors] = {}
    for name, tensor in state.items():
        layer, _, own = name.partition(".lora.")
        layers.setdefault(layer, {})[own] = tensor
    return {
        f"{layer}.lora.{own}": tensor
        for layer, tensors in layers.items()
        for own, tensor in change(tensors).items()
    }


def save(folder: Path, state: dict[str, torch.Tensor], config: AdapterConfig) -> None:
    """Write a PEFT folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents(state, config).items():
        (folder / name).write_bytes(content)


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    """Name inside to whole tensor, float32, of an adapter's every factor."""
    file = folder / WEIGHTS
    handle = open_safetensors(file)
    problems = [
        f"{file}: {name} is {dtype}, expected floating point"
        for name in handle.keys()
        if (dtype := handle.get_slice(name).get_dtype()) not in FLOATS
    ]
    raise_if(problems)
    state = {name: handle.get_tensor(name).float() for name in handle.keys()}
    problems = [f"{file}: {name} is not finite" for name, t in state.items() if not _finite(t)]
    raise_if(problems)
    return from_peft(state, str(file))


def peft_hash(folder: Path) -> str:
    """SHA-256, in hex, of what decides the values of the adapter in `folder` and how they are
    applied; of the files beside them nothing."""
    return fingerprint_of([folder / WEIGHTS, folder / CONFIG])


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
