"""The data files that a path names: itself, or the shards of a folder in the order of their names,
or those of a data set on the Hugging Face hub, where there is no such path here.

A folder is read whole or refused: a shard that is missing, or several splits in one folder, would
otherwise train on other rows than were meant.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from llama.errors import UserError
from llama.files.data_names import KINDS, is_data, missing_shards, split_of
from llama.files.hub_rows import fetched, hub_name
from llama.files.inputs import NOT_THERE, file_problem, sha256_of

MODELS = ("config.json", "params.json", "tokenizer.json", "adapter_config.json")
"""Files that make a folder a model's."""
DEEPEST = 3
"""Folders in one another that are looked into."""
SHOWN = 4
_WANTED = "; give a file or a folder of rows, or a data set of the Hugging Face hub as ORG/NAME"


def data_files(path: Path) -> list[Path]:
    """The files of `path`: itself, or those of the folder that it is; of a name on the hub, which
    are fetched first. Raises UserError."""
    if (name := hub_name(path)) is not None:
        return list(fetched(name))
    if not os.path.isdir(path):  # Path.is_dir raises where a name is too long.
        return [path]
    folder, files = _in_folder(path)
    missing = missing_shards([file.name for file in files])
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UserError(
            f"{folder}: these of its shards are missing: {', '.join(missing[:SHOWN])}{more}; "
            "download them, or give the files that are meant one by one"
        )
    splits = {split for file in files if (split := split_of(file.name))}
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
    """What stands against reading `paths`, given to `option`. The hub is not asked: that is for the
    command that reads them."""
    problems: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        if hub_name(path) is not None:
            problems += [f"--{option}: {path} is given twice"] if path in seen else []
            seen.add(path)
            continue
        try:
            files = data_files(path)
        except UserError as error:
            problems += [f"--{option}: {problem}" for problem in error.problems]
            continue
        for file in files:
            if problem := file_problem(file):
                meant = _WANTED if problem == NOT_THERE else ""
                problems.append(f"--{option}: {file} {problem}{meant}")
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
                if is_data(name):
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
