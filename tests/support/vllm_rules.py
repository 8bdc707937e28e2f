"""What vLLM 0.33.0 does with a folder, restated: all of it needs CUDA and 300 MB. Each rule names
the file of vLLM that it is from. `real` takes those files themselves, where they are."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open

VERSION = "0.33.0"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
RANK = 16
MODULES = {
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("embed_tokens", "lm_head"),
}
"""Of LlamaForCausalLM, packed ones taken apart (models/llama.py, lora/worker_manager.py)."""
SAVED_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_FACTOR = re.compile(r"base_model\.model\..+\.lora_[AB]\.weight")
_REFUSED = (
    *("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication"),
    *("use_bdlora", "use_qalora"),
)

Document = Mapping[str, Any]
Names = list[str]


@dataclass(frozen=True)
class Rule:
    """Something without which vLLM refuses a folder, or takes it for what it is not."""

    says: str
    read_in: str
    holds: Callable[[Document, Names, int], bool]
    """Of the configuration, the names of tensors, and `--max-lora-rank`."""


def _module(name: str) -> str:
    return name.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")


def _ranks(document: Document) -> list[Any]:
    return [document.get("r"), *(document.get("rank_pattern") or {}).values()]


PEFT_RULES = (
    Rule(
        "r, lora_alpha and target_modules are there",
        "lora/peft_helper.py, from_dict",
        lambda d, n, m: {"r", "lora_alpha", "target_modules"} <= d.keys(),
    ),
    Rule(
        "ranks are whole numbers above 0",
        "lora/peft_helper.py, __post_init__",
        lambda d, n, m: all(isinstance(rank, int) and rank > 0 for rank in _ranks(d)),
    ),
    Rule(
        "no rank is above --max-lora-rank",
        "lora/peft_helper.py, validate_legal",
        lambda d, n, m: max(_ranks(d)) <= m,
    ),
    Rule(
        "--max-lora-rank is one of a list",
        "config/lora.py, MaxLoRARanks",
        lambda d, n, m: m in RANKS,
    ),
    Rule(
        "nothing else is trained than factors",
        "lora/peft_helper.py, _validate_features",
        lambda d, n, m: not d.get("modules_to_save") and d.get("bias", "none") == "none",
    ),
    Rule(
        "no DoRA, and none of what changes the sum otherwise",
        "lora/peft_helper.py, _validate_features",
        lambda d, n, m: not any(d.get(name) for name in _REFUSED),
    ),
    Rule(
        "the start left the base as it was",
        "lora/peft_helper.py, _init_is_supported",
        lambda d, n, m: (
            not isinstance(start := d.get("init_lora_weights", True), str)
            or start.lower() in SAVED_INITS
        ),
    ),
    Rule(
        "every tensor is a factor of a module",
        "lora/utils.py, parse_fine_tuned_lora_name",
        lambda d, n, m: all(
            re.fullmatch(r"base_model\.model\..+\.lora_[AB]\.weight", x) for x in n
        ),
    ),
    Rule(
        "every module is one of LLaMA's",
        "lora/lora_model.py, check_unexpected_modules",
        lambda d, n, m: all(_module(x).rpartition(".")[2] in MODULES for x in n),
    ),
)


def broken(folder: Path, max_rank: int) -> list[str]:
    """The rules that a PEFT folder breaks. Tensors are in `adapter_model.safetensors`, else in
    files that are not written here (lora/lora_model.py, from_local_checkpoint)."""
    document = json.loads((folder / "adapter_config.json").read_text())
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    return [rule.says for rule in PEFT_RULES if not rule.holds(document, names, max_rank)]


def products(folder: Path) -> dict[str, torch.Tensor]:
    """By module, what vLLM adds to its weight: `scale B A`, with the rank and alpha of the first
    pattern that the module's name ends with (lora/peft_helper.py, get_rank_and_scaling)."""
    document = json.loads((folder / "adapter_config.json").read_text())
    found: dict[str, torch.Tensor] = {}
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for name in file.keys():
            if not name.endswith(".lora_A.weight"):
                continue
            module = _module(name).removeprefix("base_model.model.")
            rank = _matching(document.get("rank_pattern"), module) or document["r"]
            alpha = _matching(document.get("alpha_pattern"), module) or document["lora_alpha"]
            scale = alpha / (math.sqrt(rank) if document.get("use_rslora") else rank)
            b = file.get_tensor(name.replace("lora_A", "lora_B"))
            found[module] = scale * (b @ file.get_tensor(name))
    return found


def _matching(pattern: Document | None, module: str) -> Any:
    return next(
        (v for key, v in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), None
    )


def real(files: Path, folder: Path, max_rank: int) -> dict[str, torch.Tensor]:
    """The same by vLLM's own files, whose `vllm/` lies in `files`: its PEFTHelper and LoRAModel
    check the folder and read it. Of what they import only this is made here: a logger, the rank
    that is allowed, and a switch for pinned memory. Raises ValueError as vLLM does."""
    config = types.SimpleNamespace(max_lora_rank=max_rank)
    made = {
        "vllm": {},
        "vllm.config": {},
        "vllm.config.lora": {"LoRAConfig": object},
        "vllm.logger": {"init_logger": lambda name: mock.MagicMock()},
        "vllm.utils": {},
        "vllm.utils.torch_utils": {"PIN_MEMORY": False},
        "vllm.model_executor": {},
        "vllm.model_executor.models": {},
        "vllm.model_executor.models.utils": {"WeightsMapper": object},
        "vllm.lora": {},
        "vllm.lora.utils": _functions(files / "vllm/lora/utils.py"),
    }
    modules = {name: types.ModuleType(name) for name in made}
    for name, attributes in made.items():
        modules[name].__dict__.update(attributes)
    with mock.patch.dict(sys.modules, modules):
        for name in ("peft_helper", "lora_weights", "lora_model"):
            whole = f"vllm.lora.{name}"
            module = sys.modules[whole] = types.ModuleType(whole)
            exec((files / f"vllm/lora/{name}.py").read_text(), module.__dict__)
        helper = sys.modules["vllm.lora.peft_helper"].PEFTHelper.from_local_dir(str(folder), None)
        helper.validate_legal(config)
        loaded = sys.modules["vllm.lora.lora_model"].LoRAModel.from_local_checkpoint(
            str(folder), MODULES, helper, lora_model_id=1, device="cpu"
        )
    return {name: lora.scaling * (lora.lora_b @ lora.lora_a) for name, lora in loaded.loras.items()}


def _functions(file: Path) -> dict[str, Any]:
    """The two functions of it that read names; the rest of the file wants all of vLLM."""
    wanted = ("parse_fine_tuned_lora_name", "is_base_embedding_weights", "get_lora_id")
    tree = ast.parse(file.read_text())
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in wanted]
    found: dict[str, Any] = {"WeightsMapper": object, "get_lora_id": lambda: 1}
    exec(compile(tree, str(file), "exec"), found)
    return found
