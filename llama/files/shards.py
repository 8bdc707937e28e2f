"""The data files that a path names: itself, or the shards of a folder in the order of their names.

A folder is read whole or refused: a shard that is missing, or several splits in one folder, would
otherwise train on other rows than were meant.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from llama.errors import UserError
from llama.files.inputs import file_problem, sha256_of

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
MODELS = ("config.json", "params.json", "tokenizer.json", "adapter_config.json")
"""Files that make a folder a model's."""
DEEPEST = 3
"""Folders in one another that are looked into."""
SHARD = re.compile(r"(.*?)-(\d+)-of-(\d+)(.*)")
SHOWN = 4


def data_files(path: Path) -> list[Path]:
    """The files of `path`: itself, or those of the folder that it is. Raises UserError."""
    if not os.path.isdir(path):  # Path.is_dir raises where a name is too long.
        return [path]
    folder, files = _in_folder(path)
    missing = _missing(files)
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UserError(
            f"{folder}: these of its shards are missing: {', '.join(missing[:SHOWN])}{more}; "
            "download them, or give the files that are meant one by one"
        )
    splits = {split for file in files if (split := _split(file.name))}
    if len(splits) > 1:
        first = min(file.name for file in files)
        raise UserError(
            f"{folder}: holds several splits ({', '.join(sorted(splits))}); give the files of the "
            f"one that is meant, as {folder / first}"
        )
    return files


def sha256_of_files(files: Sequence[Path]) -> str:
    """The hash of the only file, or of the hashes of several in their order."""
    return hash_of_hashes([sha256_of(file) for file in files])


def hash_of_hashes(hashes: Sequence[str]) -> str:
    """As `sha256_of_files` puts the hashes of files together."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def data_problems(option: str, paths: list[Path]) -> list[str]:
    """What stands against reading `paths`, given to `option`."""
    problems: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        try:
            files = data_files(path)
        except UserError as error:
            problems += [f"--{option}: {problem}" for problem in error.problems]
            continue
        for file in files:
            if problem := file_problem(file):
                problems.append(f"--{option}: {file} {problem}")
            elif (real := file.resolve()) in seen:
                problems.append(f"--{option}: {file} is given twice")
            else:
                seen.add(real)
    return problems


def _in_folder(folder: Path) -> tuple[Path, list[Path]]:
    """The data files of `folder`, or of the only one inside it that has any, by name."""
    found: dict[Path, list[Path]] = {}
    others = 0
    try:
        for place, inside, names in os.walk(folder, onerror=_raise):
            depth = len(Path(place).relative_to(folder).parts)
            seen = inside if depth < DEEPEST else []
            inside[:] = sorted(name for name in seen if not name.startswith((".", "_")))
            if model := next((name for name in MODELS if name in names), None):
                raise UserError(f"{place}: holds a model ({model}), not rows; give rows of data")
            for name in sorted(names):
                if _is_data(name):
                    found.setdefault(Path(place), []).append(Path(place) / name)
                else:
                    others += 1
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None
    if not found:
        beside = f" among its {others} files" if others else ""
        wanted = ", ".join(KINDS)
        raise UserError(f"{folder}: holds no data file{beside}; their names end in {wanted}")
    if len(found) > 1:
        names = ", ".join(str(place) for place in list(found)[:SHOWN])
        raise UserError(f"{folder}: holds data in several folders ({names}); give the one meant")
    return next(iter(found.items()))


def _raise(error: OSError) -> None:
    raise error


def _is_data(name: str) -> bool:
    stem, packer = os.path.splitext(name.lower())
    end = os.path.splitext(stem)[1] if packer in PACKED else packer
    return end in KINDS and not name.startswith((".", "_")) and name not in DESCRIPTIONS


def _split(name: str) -> str | None:
    """The split that a file's name tells."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _missing(files: list[Path]) -> list[str]:
    """Names of shards that are not there: numbered from 0, or from 1 where the last number is the
    total."""
    sets: dict[tuple[str, str, str], set[int]] = {}
    for file in files:
        if shard := SHARD.fullmatch(file.name):
            sets.setdefault((shard[1], shard[3], shard[4]), set()).add(int(shard[2]))
    missing: list[str] = []
    for (name, total, end), numbers in sets.items():
        first = 1 if int(total) in numbers else 0
        wanted = range(first, first + min(int(total), 100_000))
        width = len(total)
        missing += [f"{name}-{n:0{width}}-of-{total}{end}" for n in wanted if n not in numbers]
    return missing
