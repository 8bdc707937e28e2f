"""Adapters as PEFT folders: `adapter_model.safetensors` and `adapter_config.json`, both ways.

Rotary halves are laid out inside as Hugging Face has them, so no row is moved on the way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from llama.adapters.kinds import KINDS
from llama.errors import UserError, raise_if
from llama.files.json_text import json_text
from llama.files.safetensors import FLOATS, open_safetensors
from llama.settings import LoRAOptions
from llama.weights.fields import Fields, read_json_object, shorten
from llama.weights.names import from_huggingface, to_huggingface

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_NATIVE = {peft: name for kind in KINDS.values() for name, peft in kind.PEFT_TENSORS.items()}
"""A tensor's name on its layer, in PEFT's words to ours."""
_PEFT = {name: peft for peft, name in _NATIVE.items()}
_KIND = "lora"
"""What an `adapter_config.json` of peft_type LORA describes."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base model as it was."""


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is, apart from its weights."""

    options: LoRAOptions
    base_model: str


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
    """Name to content of a PEFT folder's files. `state` is whole, not sharded; it is written in
    float32."""
    modules = sorted(
        {_module_to_huggingface(name.partition(".lora.")[0]).rpartition(".")[2] for name in state}
    )
    options = config.options
    document: dict[str, Any] = {
        **KINDS[options.kind].to_peft(options),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    tensors = {name: t.float().contiguous() for name, t in sorted(to_peft(state).items())}
    return {
        WEIGHTS: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        CONFIG: (json_text(document, indent=2) + "\n").encode(),
    }


def save(folder: Path, state: dict[str, torch.Tensor], config: AdapterConfig) -> None:
    """Write a PEFT folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents(state, config).items():
        (folder / name).write_bytes(content)


def load_config(folder: Path) -> AdapterConfig:
    """Raises `UserError` for a configuration that is not a plain LoRA on LLaMA's linear layers."""
    file = folder / CONFIG
    document = read_json_object(file)
    problems = _unsupported(file, document)
    targets: list[str] = []
    modules = document.get("target_modules")
    for module in modules if isinstance(modules, list) else []:
        native = _native_target(str(module))
        if native is None:
            problems.append(
                f"{file}: target_modules: {shorten(module)} is no linear layer of a LLaMA"
            )
        elif native not in targets:
            targets.append(native)
    fields = Fields(document, str(file))
    rank, alpha = fields.integer("r"), fields.number("lora_alpha")
    raise_if(problems + fields.problems)
    dropout = document.get("lora_dropout")
    options = LoRAOptions(
        kind=_KIND,
        rank=rank,
        alpha=alpha,
        dropout=float(dropout) if isinstance(dropout, int | float) else 0.0,
        targets=tuple(targets),
        **KINDS[_KIND].from_peft(document),
    )
    return AdapterConfig(options, str(document.get("base_model_name_or_path")))


def _native_target(module: str) -> str | None:
    for part in ("self_attn", "mlp"):
        native = from_huggingface(f"model.layers.0.{part}.{module}.weight")
        if native is not None:
            return native.split(".")[-2]
    return None


def _unsupported(file: Path, document: dict[str, object]) -> list[str]:
    problems = []
    if document.get("peft_type") != "LORA":
        found = shorten(document.get("peft_type"))
        problems.append(f"{file}: peft_type: expected LORA, found {found}")
    if not isinstance(document.get("target_modules"), list) or not document["target_modules"]:
        problems.append(f"{file}: target_modules: expected a list of layer names")
    for field in KINDS[_KIND].PEFT_REFUSED:
        if document.get(field):
            problems.append(f"{file}: {field}: not supported here")
    start = document.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        problems.append(
            f"{file}: init_lora_weights: {shorten(start)} changes the base model's weights too: "
            "convert the adapter to a plain one (PEFT's path_initial_model_for_weight_conversion)"
        )
    for pattern in ("rank_pattern", "alpha_pattern", "layers_to_transform", "modules_to_save"):
        if document.get(pattern):
            problems.append(f"{file}: {pattern}: one rank and scale for all layers is supported")
    if document.get("bias", "none") != "none":
        problems.append(
            f"{file}: bias: only 'none' is supported, found {shorten(document['bias'])}"
        )
    return problems


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


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
