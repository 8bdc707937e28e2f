"""Whether the tensors of an adapter's file are those that a model needs."""

from __future__ import annotations

from pathlib import Path

from llama.adapters.peft_format import CONFIG, WEIGHTS, AdapterConfig, peft_name
from llama.model.config import PART_OF, ModelConfig
from llama.weights.shapes import summarise

Shapes = dict[str, tuple[int, ...]]
"""By native name, as `layers.0.attention.wq.lora.a`."""
_BY_ROWS = ("wq", "wk", "wv", "w1", "w3")
"""Layers that tensor parallelism cuts by rows, and so the rows of B; of the others, A's columns."""


def expected_shapes(config: ModelConfig, rank: int, targets: tuple[str, ...]) -> Shapes:
    """Unsharded shapes of both factors of every adapter: A is rank x in, B is out x rank."""
    shapes: Shapes = {}
    for layer in range(config.n_layers):
        for target in targets:
            part = PART_OF[target]
            rows, columns = config.linear_shape(target)
            shapes[f"layers.{layer}.{part}.{target}.lora.a"] = (rank, columns)
            shapes[f"layers.{layer}.{part}.{target}.lora.b"] = (rows, rank)
    return shapes


def misfits(folder: Path, adapter: AdapterConfig, found: Shapes, config: ModelConfig) -> list[str]:
    """One line for each thing that keeps the tensors `found` in `folder` from this model, of many
    alike the first few and a count."""
    ranks = {shape[0 if name.endswith(".a") else -1] for name, shape in found.items() if shape}
    if len(ranks) == 1 and ranks != {adapter.rank}:
        return [
            f"{folder / CONFIG}: r is {adapter.rank}, but the tensors of {WEIGHTS} have rank "
            f"{ranks.pop()}: one of the two files is another adapter's"
        ]
    expected = expected_shapes(config, adapter.rank, adapter.targets)
    where = str(folder / WEIGHTS)
    alone = [name for name in found if name in expected and _other(name) not in found]
    missing = expected.keys() - found.keys() - {_other(name) for name in alone}
    foreign = sorted(map(peft_name, found.keys() - expected.keys()))
    problems = [
        *summarise(where, "one factor without the other:", sorted(map(peft_name, alone))),
        *summarise(where, "missing tensor", sorted(map(peft_name, missing))),
        *summarise(where, "made for another base, which has", foreign),
    ]
    both = sorted(found.keys() & expected.keys())
    wrong = [name for name in both if found[name] != expected[name]]
    if wrong and (count := _shards(found, expected)):
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


def _other(name: str) -> str:
    return name[:-1] + ("b" if name.endswith(".a") else "a")


def _shards(found: Shapes, expected: Shapes) -> int | None:
    """In how many shards the tensors were cut, if every one is what a single rank holds."""
    counts = set()
    for name in found.keys() & expected.keys():
        target, factor = name.split(".")[-3], name[-1]
        cut = (0 if factor == "b" else 1) if (factor == "b") == (target in _BY_ROWS) else None
        held, whole = found[name], expected[name]
        if len(held) != 2 or any(held[d] != whole[d] for d in (0, 1) if d != cut):
            return None
        if cut is not None:
            count, rest = divmod(whole[cut], max(1, held[cut]))
            if rest or count < 2:
                return None
            counts.add(count)
    return counts.pop() if len(counts) == 1 else None
