"""Adapters as PEFT folders: `adapter_model.safetensors` and `adapter_config.json`, both ways.

Rotary halves are laid out inside as Hugging Face has them, so no row is moved on the way.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from llama.errors import UserError
from llama.weights.names import from_huggingface, to_huggingface

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_FACTOR = {"a": "lora_A", "b": "lora_B"}
_OTHER_ARITHMETIC = (
    "use_dora",
    "use_rslora",
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""PEFT's fields under which the same tensors mean another sum."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base model as it was."""


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is, apart from its weights. `targets` are this project's names."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    base_model: str


def to_peft(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`layers.0.attention.wq.lora.a` to PEFT's
    `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`."""
    renamed = {}
    for name, tensor in state.items():
        layer, _, factor = name.partition(".lora.")
        renamed[f"{_PREFIX}{_module_to_huggingface(layer)}.{_FACTOR[factor]}.weight"] = tensor
    return renamed


def from_peft(state: dict[str, torch.Tensor], file: str) -> dict[str, torch.Tensor]:
    """The inverse of `to_peft`. Raises `UserError` for a name that is no LoRA factor of a LLaMA."""
    pattern = re.compile(re.escape(_PREFIX) + r"(.+)\.lora_([AB])\.weight")
    renamed, problems = {}, []
    for name, tensor in state.items():
        match = pattern.fullmatch(name)
        native = from_huggingface(f"{match[1]}.weight") if match else None
        if match is None or native is None:
            problems.append(f"{file}: {name} is not a LoRA factor of a LLaMA layer")
            continue
        renamed[f"{native.removesuffix('.weight')}.lora.{match[2].lower()}"] = tensor
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
    document: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    tensors = {name: t.float().contiguous() for name, t in sorted(to_peft(state).items())}
    return {
        WEIGHTS: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        CONFIG: (json.dumps(document, indent=2) + "\n").encode(),
    }


def save(folder: Path, state: dict[str, torch.Tensor], config: AdapterConfig) -> None:
    """Write a PEFT folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents(state, config).items():
        (folder / name).write_bytes(content)


def load_config(folder: Path) -> AdapterConfig:
    """Raises `UserError` for a configuration that is not a plain LoRA on LLaMA's linear layers."""
    file = folder / CONFIG
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}; give a PEFT adapter folder") from error
    if not isinstance(document, dict):
        raise UserError(f"{file}: an object was expected; give a PEFT adapter folder")
    problems = _unsupported(file, document)
    targets = []
    modules = document.get("target_modules")
    for module in modules if isinstance(modules, list) else []:
        native = _native_target(str(module))
        if native is None:
            problems.append(f"{file}: target_modules: {module!r} is no linear layer of a LLaMA")
        else:
            targets.append(native)
    if problems:
        raise UserError(problems)
    return AdapterConfig(
        rank=document["r"],
        alpha=float(document["lora_alpha"]),
        dropout=float(document.get("lora_dropout") or 0.0),
        targets=tuple(targets),
        base_model=str(document.get("base_model_name_or_path")),
    )


def _native_target(module: str) -> str | None:
    for part in ("self_attn", "mlp"):
        native = from_huggingface(f"model.layers.0.{part}.{module}.weight")
        if native is not None:
            return native.split(".")[-2]
    return None


def _unsupported(file: Path, document: dict[str, Any]) -> list[str]:
    problems = []
    if document.get("peft_type") != "LORA":
        problems.append(f"{file}: peft_type: expected LORA, found {document.get('peft_type')!r}")
    rank, alpha = document.get("r"), document.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        problems.append(f"{file}: r: expected an integer of at least 1, found {rank!r}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        problems.append(f"{file}: lora_alpha: expected a number, found {alpha!r}")
    if not isinstance(document.get("target_modules"), list) or not document["target_modules"]:
        problems.append(f"{file}: target_modules: expected a list of layer names")
    for field in _OTHER_ARITHMETIC:
        if document.get(field):
            problems.append(f"{file}: {field}: not supported here")
    start = document.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        problems.append(
            f"{file}: init_lora_weights: {start!r} changes the base model's weights too: convert "
            "the adapter to a plain one with PEFT (path_initial_model_for_weight_conversion)"
        )
    for pattern in ("rank_pattern", "alpha_pattern", "layers_to_transform", "modules_to_save"):
        if document.get(pattern):
            problems.append(f"{file}: {pattern}: one rank and scale for all layers is supported")
    if document.get("bias", "none") != "none":
        problems.append(f"{file}: bias: only 'none' is supported, found {document['bias']!r}")
    return problems


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    """Name inside to whole tensor, float32, of an adapter's every factor."""
    file = folder / WEIGHTS
    try:
        with safe_open(file, framework="pt") as handle:
            state = {name: handle.get_tensor(name).float() for name in handle.keys()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {error}; give a PEFT adapter folder") from error
    problems = [f"{file}: {name} is not finite" for name, t in state.items() if not _finite(t)]
    if problems:
        raise UserError(problems)
    return from_peft(state, str(file))


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
