"""The words that `--lora.targets` takes besides Meta's names of the layers."""

from __future__ import annotations

from collections.abc import Iterable

from llama.model.config import HUGGINGFACE_NAMES, LINEARS, PART_OF

WORDS: dict[str, tuple[str, ...]] = {
    **{theirs: (ours,) for ours, theirs in HUGGINGFACE_NAMES.items()},
    **{
        part: tuple(name for name in LINEARS if PART_OF[name] == part)
        for part in dict.fromkeys(PART_OF.values())
    },
    "all-linear": LINEARS,
}
"""Each to the layers that it means, by Meta's names."""


def in_our_names(targets: Iterable[str]) -> tuple[str, ...]:
    """`targets` with each known word replaced by the layers that it means; others as they are."""
    return tuple(name for target in targets for name in WORDS.get(target, (target,)))
