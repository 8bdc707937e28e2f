"""Whether the tensors of an adapter's file are those that a model needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

from llama.adapters.adapter import Cut, Shapes
from llama.adapters.kinds import kind_of
from llama.adapters.peft_config import Description
from llama.adapters.peft_format import WEIGHTS, peft_name
from llama.model.config import LINEARS, PART_OF, ROW_PARALLEL, ModelConfig
from llama.settings import LoRAOptions
from llama.weights.shapes import summarise

_OTHER = {".a": ".b", ".b": ".a"}
"""The end of a factor's name to that of the other one's."""


def expected_shapes(config: ModelConfig, options: LoRAOptions) -> Shapes:
    """Unsharded shapes of every tensor that trains of every adapter, by native name."""
    return _everywhere(config, options, kind_of(options).shapes)


def fixed_shapes(config: ModelConfig, options: LoRAOptions) -> Shapes:
    """The same of those that do not train, and are kept with them."""
    return _everywhere(config, options, kind_of(options).fixed_shapes)


def _everywhere(
    config: ModelConfig, options: LoRAOptions, of_layer: Callable[[int, int, int], Shapes]
) -> Shapes:
    return {
        f"layers.{layer}.{PART_OF[target]}.{target}.lora.{name}": shape
        for target in options.targets
        for layer in range(config.n_layers)
        for name, shape in of_layer(*config.linear_shape(target), options.rank).items()
    }


def parameter_count(config: ModelConfig, options: LoRAOptions) -> int:
    """Parameters of all adapters that train, unsharded."""
    return _count(expected_shapes(config, options))


def fixed_count(config: ModelConfig, options: LoRAOptions) -> int:
    """Of those that do not."""
    return _count(fixed_shapes(config, options))


def _count(shapes: Shapes) -> int:
    return sum(map(prod, shapes.values()))


def misfits(description: Description, found: Shapes, config: ModelConfig) -> list[str]:
    """One line for each thing that keeps the tensors `found`, beside the configuration
    `description`, from this model; of many alike the first few and a count."""
    options, where = description.config.options, str(description.file.with_name(WEIGHTS))
    ranks = {shape[0] for name, shape in found.items() if shape and name.endswith(".a")}
    ranks |= {shape[-1] for name, shape in found.items() if shape and name.endswith(".b")}
    if len(ranks) == 1 and ranks != {options.rank} and not description.document.get("rank_pattern"):
        return [
            f"{description.file}: r is {options.rank}, but the tensors of {WEIGHTS} have rank "
            f"{ranks.pop()}: one of the two files is another adapter's"
        ]
    possible = expected_shapes(config, replace(options, targets=LINEARS))
    of_layers = layer_options(description, found)
    expected = _shapes_of(of_layers, config)
    alone = [n for n in found if n in possible and n[-2:] in _OTHER and _other(n) not in found]
    meant = _shapes_of(dict.fromkeys(description.meant(config) or (), options), config)
    needed = meant.keys() | (expected.keys() if found else set())
    missing = needed - found.keys() - {_other(name) for name in alone}
    foreign = sorted(map(peft_name, found.keys() - possible.keys()))
    problems = [
        *summarise(where, "one factor without the other:", sorted(map(peft_name, alone))),
        *summarise(where, "missing tensor", sorted(map(peft_name, missing))),
        *summarise(where, "made for another base, which has", foreign),
    ]
    if not found:
        problems.append(f"{where}: holds no tensors")
    for layer, of_layer in of_layers.items():
        said, rank = description.rank_of(layer), found.get(f"{layer}.lora.a", (0,))[0]
        if said is not None and rank not in (0, said):
            problems.append(
                f"{description.file}: rank_pattern: says {said} for {layer}, whose tensors have "
                f"rank {rank}: one of the two files is another adapter's"
            )
            expected |= _shapes_of({layer: replace(of_layer, rank=rank)}, config)
    both = sorted(found.keys() & expected.keys())
    wrong = [name for name in both if found[name] != expected[name]]
    if wrong and (count := _shards(found, expected, kind_of(options).CUT)):
        return [
            *problems,
            f"{where}: its tensors are 1/{count} of the whole: this is one tensor-parallel shard "
            "of an adapter; join the shards of all ranks first",
        ]
    shapes = [
        f"{peft_name(name)} has shape {list(found[name])}, this model needs {list(expected[name])}"
        for name in wrong
    ]
    return problems + summarise(where, "made for another base:", shapes)


def layer_options(description: Description, found: Shapes) -> dict[str, LoRAOptions]:
    """The native layers that have tensors among `found`, each with the options it is adapted by."""
    ranks = {name.partition(".lora.")[0]: shape for name, shape in found.items()}
    ranks |= {n.partition(".lora.")[0]: s for n, s in found.items() if n.endswith(".a")}
    return {
        layer: description.of_layer(layer, shape[0] if shape else 1)
        for layer, shape in sorted(ranks.items())
    }


def _shapes_of(layers: Mapping[str, LoRAOptions], config: ModelConfig) -> Shapes:
    """Unsharded shapes of every tensor on those of `layers` that the model has."""
    shapes: Shapes = {}
    for layer, options in layers.items():
        for_all = expected_shapes(config, replace(options, targets=(layer.rpartition(".")[2],)))
        shapes |= {n: s for n, s in for_all.items() if n.startswith(f"{layer}.lora.")}
    return shapes


def _other(name: str) -> str:
    return name[:-2] + _OTHER[name[-2:]]


def _shards(found: Shapes, expected: Shapes, cuts: Mapping[str, Cut]) -> int | None:
    """In how many shards the tensors were cut, if every one is what a single rank holds."""
    counts = set()
    for name in found.keys() & expected.keys():
        *_, target, _, tensor = name.split(".")
        cut = cuts[tensor].of(target not in ROW_PARALLEL)
        held, whole = found[name], expected[name]
        if len(held) != len(whole) or any(
            held[d] != whole[d] for d in range(len(whole)) if d != cut
        ):
            return None
        if cut is not None:
            count, rest = divmod(whole[cut], max(1, held[cut]))
            if rest or count < 2:
                return None
            counts.add(count)
    return counts.pop() if len(counts) == 1 else None
