"""What the names of data files tell: that they are some, of which split, and which shard."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
"""How the names of data files end, before what a packer may have added."""
PACKED = (".gz", ".zst", ".xz", ".bz2", ".lz4", ".zip")
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What the library `datasets` lays beside its data."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout"), "test"),
}
"""Words in the names of files, and the split that the library `datasets` takes them for."""
SHARD = re.compile(r"(.*?)-(\d+)-of-(\d+)(.*)")


def ending(name: str) -> str:
    """How the name of a file ends, before what a packer may have added."""
    stem, packer = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if packer in PACKED else packer


def is_data(name: str) -> bool:
    """Whether a file of this name holds rows."""
    return ending(name) in KINDS and not name.startswith((".", "_")) and name not in DESCRIPTIONS


def split_of(name: str) -> str | None:
    """The split that a file's name tells."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def missing_shards(files: Iterable[str]) -> list[str]:
    """Those of the shards named `files` that are not there: numbered from 0, or from 1 where the
    last number is the total."""
    sets: dict[tuple[str, str, str], set[int]] = {}
    for file in files:
        if shard := SHARD.fullmatch(file):
            sets.setdefault((shard[1], shard[3], shard[4]), set()).add(int(shard[2]))
    missing: list[str] = []
    for (name, total, end), numbers in sets.items():
        first = 1 if int(total) in numbers else 0
        wanted = range(first, first + min(int(total), 100_000))
        width = len(total)
        missing += [f"{name}-{n:0{width}}-of-{total}{end}" for n in wanted if n not in numbers]
    return missing
