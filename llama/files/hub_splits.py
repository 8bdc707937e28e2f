"""Which files of a data set on the hub are the split that is asked for: by its card, else by the
names of its files and folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llama.errors import UserError
from llama.files.data_names import SPLITS, ending, is_data, missing_shards, split_of
from llama.files.inputs import nearest, read_text

TRAIN = "train"
SHOWN = 8
"""Names that a message lists."""

Splits = dict[str, list[str]]
"""Name of a split to its files."""


class NoChoiceError(Exception):
    """Why no files can be chosen, as a line that goes on from the data set's name."""


def choose(
    files: Sequence[str], card: Mapping[str, Any], wanted: str | None
) -> tuple[list[str], str]:
    """The files, of all `files` of the repository, that `wanted` names (`split`, `configuration` or
    `configuration/split`; None is the train split), and how that was told. Raises NoChoiceError."""
    data = sorted(file for file in files if is_data(Path(file).name) and not _is_hidden(file))
    if not data:
        raise NoChoiceError(_no_data(files))
    configs = _configs(card)
    if configs:
        config, split = _parted(wanted, configs)
        splits = _of_config(config or _default(configs), configs, data)
        why = "by its card"
    else:
        folders = {Path(file).parts[0] for file in data if len(Path(file).parts) > 1}
        config, split = _parted(wanted, folders)
        inside = [file for file in data if config is None or Path(file).parts[0] == config]
        splits, why = _by_names(inside), "by the names of its files"
    name = _split(split, splits)
    taken = splits[name]
    _require_one_set(taken, name)
    return taken, f"split {name}, {why}"


def read_card(path: Path) -> dict[str, Any]:
    """What stands in YAML at the head of a card. Raises UserError."""
    text = read_text(path)
    found = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    if found is None:
        return {}
    try:
        said = yaml.safe_load(found[1])
    except (yaml.YAMLError, RecursionError):
        raise UserError(f"{path}: the YAML at its head cannot be read") from None
    return said if isinstance(said, dict) else {}


def _configs(card: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The card's configurations by name."""
    listed = card.get("configs")
    listed = listed if isinstance(listed, list) else []
    return {
        str(config.get("config_name", "default")): config
        for config in listed
        if isinstance(config, dict)
    }


def _parted(
    wanted: str | None, configs: Mapping[str, Any] | set[str]
) -> tuple[str | None, str | None]:
    """The configuration and the split that `wanted` names; one word is a configuration if there is
    one of that name."""
    if wanted is None:
        return None, None
    first, slash, split = wanted.partition("/")
    if slash and first not in configs:
        raise NoChoiceError(
            f"has no configuration {first!r}: {_listed(configs)}{nearest(first, configs)}"
        )
    return (first, split or None) if first in configs else (None, first)


def _default(configs: Mapping[str, Mapping[str, Any]]) -> str:
    if len(configs) == 1:
        return next(iter(configs))
    marked = [name for name, config in configs.items() if config.get("default") is True]
    for name in (*marked, "default"):
        if name in configs:
            return name
    raise NoChoiceError(
        f"has several configurations: {_listed(configs)}; name the one that is meant after a colon"
    )


def _of_config(name: str, configs: Mapping[str, Mapping[str, Any]], data: Sequence[str]) -> Splits:
    """The splits of a configuration, as `data_files` and `data_dir` of the card say."""
    config = configs[name]
    folder = str(config.get("data_dir") or "").strip("./")
    inside = [file for file in data if not folder or file.startswith(f"{folder}/")]
    said = config.get("data_files")
    if said is None:
        return _by_names(inside)
    entries = said if isinstance(said, list) else [said]
    splits: Splits = {}
    for entry in entries:
        pairs = {TRAIN: entry}
        if isinstance(entry, dict):
            pairs = {str(entry["split"]): entry.get("path")} if "split" in entry else entry
        for split, patterns in pairs.items():
            for pattern in patterns if isinstance(patterns, list) else [patterns]:
                splits.setdefault(str(split), []).extend(_matching(str(pattern), folder, data))
    return {split: list(dict.fromkeys(files)) for split, files in splits.items()}


def _matching(pattern: str, folder: str, data: Sequence[str]) -> list[str]:
    pattern = pattern.removeprefix("./")
    glob = _regex(f"{folder}/{pattern}" if folder else pattern)
    found = [file for file in data if glob.fullmatch(file)]
    if not found:
        raise NoChoiceError(
            f"its card names {pattern!r}, and it holds no such file of rows; they are "
            f"{_listed(data)}"
        )
    return found


def _regex(pattern: str) -> re.Pattern[str]:
    """A pattern of paths, in which `*` stays within a folder and `**` does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts))


def _by_names(data: Sequence[str]) -> Splits:
    """Files by the split that their names tell, or else the folders that they are in. Where none
    tells of any, all of them are the train split."""
    splits: Splits = {}
    for file in data:
        words = [*reversed(Path(file).parts)]
        found = next((split for word in words if (split := split_of(word))), "")
        splits.setdefault(found, []).append(file)
    if set(splits) == {""}:
        return {TRAIN: splits[""]}
    splits.pop("", None)
    return splits


def _split(wanted: str | None, splits: Splits) -> str:
    if wanted is not None:
        name = wanted if wanted in splits else SPLITS.get(wanted, wanted)
        if name not in splits:
            raise NoChoiceError(
                f"has no split {wanted!r}: {_listed(splits)}{nearest(wanted, splits)}"
            )
        return name
    if TRAIN in splits:
        return TRAIN
    if len(splits) == 1:
        return next(iter(splits))
    raise NoChoiceError(
        f"has no train split but several others: {_listed(splits)}; name the one that is meant "
        "after a colon"
    )


def _require_one_set(files: Sequence[str], split: str) -> None:
    """That `files` are the shards of one set, and all of them."""
    if missing := missing_shards(files):
        raise NoChoiceError(f"these shards of its split {split} are missing: {_listed(missing)}")
    kinds = sorted({ending(file) for file in files})
    folders = sorted({str(Path(file).parent) for file in files})
    if len(kinds) > 1:
        raise NoChoiceError(_several(split, "forms", kinds))
    if len(folders) > 1:
        raise NoChoiceError(_several(split, "folders", folders))


def _several(split: str, what: str, names: Sequence[str]) -> str:
    return (
        f"holds its split {split} in several {what} ({', '.join(names[:SHOWN])}); download the "
        "files that are meant (hf download --repo-type dataset) and give those"
    )


def _no_data(files: Sequence[str]) -> str:
    if any(file.endswith(".py") for file in files):
        return (
            "is made by a script, which is not run here; the hub may hold its rows as Parquet: "
            "give the name with @refs/convert/parquet"
        )
    return f"holds no file of rows; it holds {_listed(sorted(files)) or 'nothing'}"


def _listed(names: Any) -> str:
    named = list(names)
    more = f" and {len(named) - SHOWN:,} more" if len(named) > SHOWN else ""
    return ", ".join(named[:SHOWN]) + more


def _is_hidden(file: str) -> bool:
    return any(part.startswith((".", "_")) for part in Path(file).parts)
