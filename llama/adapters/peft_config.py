"""Reading PEFT's `adapter_config.json`: how tensors are applied, and which layers it means.

Which layers are adapted is told by the tensors. What the file says of it (a list, a word, an
expression, a choice of layers) is held against them where that needs no expression of a stranger's
to be run: then a layer that it names and that has no tensors shows a file cut short.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from llama.adapters.kinds import KINDS
from llama.adapters.peft_format import CONFIG, AdapterConfig
from llama.errors import raise_if
from llama.model.config import LINEARS, PART_OF, ModelConfig
from llama.notes import note
from llama.settings import LoRAOptions
from llama.weights.fields import Fields, read_json_object, shorten
from llama.weights.names import from_huggingface, to_huggingface

ALL_LINEAR = "all-linear"
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base model as it was."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+")
_READ = frozenset(
    {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias"}
    | {"base_model_name_or_path", "init_lora_weights", "layers_to_transform", "layers_pattern"}
    | {"rank_pattern", "alpha_pattern", "use_rslora"}
    | {kind.PEFT_SWITCH for kind in KINDS.values() if kind.PEFT_SWITCH}
)
_HARMLESS = frozenset(
    {"task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "runtime_config"}
    | {"megatron_core", "megatron_config", "loftq_config", "eva_config", "corda_config"}
    | {"lora_ga_config", "qalora_group_size", "ensure_weight_tying"}
)
"""Fields about how it was made, or about what is switched by a field that is refused."""
_OTHER_PARTS = ("modules_to_save", "trainable_token_indices", "target_parameters")
"""Fields that name trained tensors besides the factors."""
_OTHER_MODEL = ("layer_replication",)


@dataclass(frozen=True)
class Description:
    """What an `adapter_config.json` says."""

    file: Path
    config: AdapterConfig
    """`targets` holds those that it names one by one; the tensors tell all of them."""
    ranks: Mapping[str, int]
    """Of layers whose names end so, the rank; `r` of the others. Of what stands behind an
    expression nothing: PEFT takes the first entry that fits a layer, which may be that one."""
    free_ranks: bool
    """Whether an expression gives ranks: then those of the tensors are taken."""
    alphas: Mapping[str, float]
    """Of layers whose names end so, alpha."""
    document: Mapping[str, Any]

    def of_layer(self, layer: str, rank: int) -> LoRAOptions:
        """The options of the native layer `layer`, whose tensors have `rank`."""
        options = self.config.options
        said = self.rank_of(layer) or (rank if self.free_ranks else options.rank)
        alphas = [alpha for key, alpha in self.alphas.items() if _ends_with(_theirs(layer), key)]
        targets = (layer.rpartition(".")[2],)
        return replace(options, rank=said, alpha=[*alphas, options.alpha][0], targets=targets)

    def rank_of(self, layer: str) -> int | None:
        """What `rank_pattern` says of a native layer, if it does."""
        return next((r for key, r in self.ranks.items() if _ends_with(_theirs(layer), key)), None)

    def meant(self, config: ModelConfig) -> set[str] | None:
        """The native layers of a model that it names; None where only an expression says it."""
        modules = self.document["target_modules"]
        excluded = self.document.get("exclude_modules") or []
        layers = self.document.get("layers_to_transform")
        pattern = self.document.get("layers_pattern")
        if isinstance(excluded, str) or pattern not in (None, [], "layers", ["layers"]):
            return None
        if isinstance(modules, str) and modules != ALL_LINEAR:
            return None
        numbers = [layers] if isinstance(layers, int) else layers
        return {
            layer
            for number in range(config.n_layers)
            if numbers is None or number in numbers
            for layer in _layers(number)
            if (modules == ALL_LINEAR or _is_among(_theirs(layer), modules))
            and not _is_among(_theirs(layer), excluded)
        }


def read_description(folder: Path) -> Description:
    """Raises `UserError` for a configuration that is not of LoRA on LLaMA's linear layers, or under
    which the tensors mean what is not computed here. Names in one note what it does not read."""
    file = folder / CONFIG
    document = read_json_object(file)
    fields = Fields(document, str(file))
    rank, alpha = fields.integer("r"), fields.number("lora_alpha")
    targets = tuple(name for name in LINEARS if name in _named(document))
    alphas, ranks = (_pattern(file, document, name) for name in ("alpha_pattern", "rank_pattern"))
    problems = [*_unsupported(file, document), *alphas.problems, *ranks.problems, *fields.problems]
    problems += [
        f"{file}: alpha_pattern: {shorten(key)} is an expression; give the names of layers"
        for key in alphas.values
        if not _PLAIN_NAME.fullmatch(key)
    ]
    plain = [*takewhile(_PLAIN_NAME.fullmatch, ranks.values)]
    raise_if(problems)
    unread = sorted(k for k, v in document.items() if v and k not in _READ | _HARMLESS)
    if unread:
        note(f"{file}: not used here: {', '.join(unread)}")
    dropout, kind = document.get("lora_dropout"), _kind(document)
    options = LoRAOptions(
        kind=kind,
        rank=rank,
        alpha=alpha,
        dropout=float(dropout) if isinstance(dropout, int | float) else 0.0,
        targets=targets,
        **KINDS[kind].from_peft(document),
    )
    config = AdapterConfig(options, str(document.get("base_model_name_or_path")))
    return Description(
        file,
        config,
        ranks={key: ranks.integer(key) for key in plain},
        free_ranks=len(plain) < len(ranks.values),
        alphas={key: alphas.number(key) for key in alphas.values},
        document=document,
    )


def load_config(folder: Path) -> AdapterConfig:
    """What `read_description` finds, without what only some layers have."""
    return read_description(folder).config


def _kind(document: Mapping[str, Any]) -> Any:
    """The name in `KINDS` of what the tensors beside the document are."""
    switches = {kind.PEFT_SWITCH: name for name, kind in KINDS.items() if kind.PEFT_SWITCH}
    return next((name for switch, name in switches.items() if document.get(switch)), "lora")


def _layers(number: int) -> Iterator[str]:
    yield from (f"layers.{number}.{PART_OF[name]}.{name}" for name in LINEARS)


def _theirs(layer: str) -> str:
    return to_huggingface(f"{layer}.weight").removesuffix(".weight")


def _ends_with(name: str, key: str) -> bool:
    """PEFT's rule for a name or the end of one: `q_proj` is the end of `...self_attn.q_proj`."""
    return name == key or name.endswith(f".{key}")


def _is_among(name: str, keys: list[Any]) -> bool:
    return any(_ends_with(name, str(key)) for key in keys)


def _named(document: Mapping[str, Any]) -> set[str]:
    """The linear layers, by Meta's names, that `target_modules` names one by one."""
    modules = document.get("target_modules")
    if modules == ALL_LINEAR:
        return set(LINEARS)
    return {
        name
        for module in (modules if isinstance(modules, list) else [])
        if (name := _native_target(str(module))) is not None
    }


def _native_target(module: str) -> str | None:
    """Meta's name of the layer that `module` is, or is the end of, in any block."""
    last = module.rpartition(".")[2]
    for part in ("self_attn", "mlp"):
        native = from_huggingface(f"model.layers.0.{part}.{last}.weight")
        whole = f"model.layers.0.{part}.{last}"
        plain = re.sub(r"(^|\.)\d+(?=\.)", r"\g<1>0", module)  # in any block
        if native is not None and _ends_with(whole, plain):
            return native.split(".")[-2]
    return None


def _pattern(file: Path, document: Mapping[str, Any], name: str) -> Fields:
    """An object of layers' names, or expressions, to numbers."""
    value = document.get(name) or {}
    fields = Fields(value if isinstance(value, dict) else {}, f"{file}: {name}")
    if not isinstance(value, dict):
        fields.problems.append(f"{file}: {name}: expected an object, found {shorten(value)}")
    for key in fields.values:
        fields.integer(key) if name == "rank_pattern" else fields.number(key)
    return fields


def _unsupported(file: Path, document: Mapping[str, Any]) -> list[str]:
    problems = []
    if document.get("peft_type") != "LORA":
        found = shorten(document.get("peft_type"))
        problems.append(f"{file}: peft_type: expected LORA, found {found}")
    modules = document.get("target_modules")
    if not modules or not isinstance(modules, list | str):
        problems.append(
            f"{file}: target_modules: expected a list of layer names, an expression, or "
            f"{ALL_LINEAR}; found {shorten(modules)}"
        )
    problems += [
        f"{file}: target_modules: {shorten(module)} is no linear layer of a LLaMA"
        for module in (modules if isinstance(modules, list) else [])
        if _native_target(str(module)) is None
    ]
    for field in (*KINDS[_kind(document)].PEFT_REFUSED, *_OTHER_MODEL):
        if document.get(field):
            problems.append(f"{file}: {field}: not supported here")
    for field in _OTHER_PARTS:
        if document.get(field):
            found = shorten(document[field])
            problems.append(f"{file}: {field}: only factors of linear layers are read, not {found}")
    start = document.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        problems.append(
            f"{file}: init_lora_weights: {shorten(start)} changes the base model's weights too: "
            "convert the adapter to a plain one (PEFT's path_initial_model_for_weight_conversion)"
        )
    layers = document.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(type(number) is int for number in numbers):
        problems.append(
            f"{file}: layers_to_transform: expected numbers of layers, found {shorten(layers)}"
        )
    if document.get("bias", "none") != "none":
        problems.append(
            f"{file}: bias: only 'none' is supported, found {shorten(document['bias'])}"
        )
    return problems
