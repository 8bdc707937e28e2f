"""A data set's name on the Hugging Face hub to files of rows on this machine.

    org/name                     its train split
    org/name:test                another
    org/name:config              of one of its configurations; org/name:config/test
    org/name@revision            as it was at a commit, a tag or a branch; before the colon

Only files of data are fetched (see `llama.files.data_names`), and the card, which says which of
them are which split. A script that would make rows is never run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.data_names import is_data
from llama.files.hub_splits import NoChoiceError, choose, read_card
from llama.notes import note

CARD = "README.md"
SHOWN = 3
"""Files that the note of what was taken names."""
_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?"
    r"(?::(?P<wanted>[\w.-]+(?:/[\w.-]+)?))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubName:
    """What was asked for."""

    repo: str
    revision: str | None
    wanted: str | None
    """A split, a configuration, or `configuration/split`; None means the train split."""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}{f':{self.wanted}' if self.wanted else ''}"


def hub_name(path: Path) -> HubName | None:
    """What `path` names on the hub; None where it is a path here, or looks like one: whatever lies
    here comes first, and what ends as a data file, or is in a folder that is here, was to be here
    too."""
    found = _NAME.fullmatch(str(path))
    if found is None or is_data(path.name) or os.path.lexists(path):
        return None
    if os.path.isdir(path.parts[0]):
        return None
    return HubName(found["repo"], found["revision"], found["wanted"])


@lru_cache
def fetched(name: HubName) -> tuple[Path, ...]:
    """The files of `name`, in the local cache. Asked again, they are the same: another push to the
    hub changes nothing for a command that goes on. Where the hub cannot be reached the cache is
    used, and that is noted.

    Raises UserError, one line, where there is no such data set, it may not be had, or it is not
    clear which of its files are meant.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download  # no dependency of this project's own
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise UserError(
            f"{name}: no such file here, and names on the Hugging Face hub need the package "
            "huggingface_hub: pip install huggingface_hub"
        ) from None
    try:
        info = HfApi().dataset_info(name.repo, revision=name.revision)
        commit = str(info.sha)
        files = [file.rfilename for file in info.siblings or []]

        def fetch(file: str, revision: str | None = commit) -> Path:
            return Path(hf_hub_download(name.repo, file, repo_type="dataset", revision=revision))

        card = read_card(fetch(CARD)) if CARD in files else {}
        taken, why = choose(files, card, name.wanted)
        paths = tuple(fetch(file) for file in taken)
        # Asked for by its name the cache notes which commit that is: now that all of it is there,
        # since without a network the cache is taken at its word.
        fetch(taken[0], name.revision)
    except NoChoiceError as error:
        raise UserError(f"{name}: {error}") from None
    except HfHubHTTPError as error:
        raise UserError(f"{name}: {_refused(name, error)}") from None
    except UserError:
        raise
    except Exception as error:  # its errors, where there is no network, come from several libraries
        return _cached(name, _first_line(error))
    _tell(name, f"at {commit[:8]}", taken, why)
    return paths


def _cached(name: HubName, reason: str) -> tuple[Path, ...]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                name.repo, repo_type="dataset", revision=name.revision, local_files_only=True
            )
        )
    except Exception:  # as above
        raise UserError(
            f"{name}: no such file here, not in the local Hugging Face cache, and the hub cannot "
            f"be reached ({reason}): download it where there is a network and give its files"
        ) from None
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    card = read_card(folder / CARD) if CARD in files else {}
    try:
        taken, why = choose(files, card, name.wanted)
    except NoChoiceError as error:
        raise UserError(
            f"{name}: the hub cannot be reached ({reason}), and what is in the local cache will "
            f"not do: {error}"
        ) from None
    _tell(
        name, f"from the local cache at {folder.name[:8]}, as the hub cannot be reached", taken, why
    )
    return tuple(folder / file for file in taken)


def _tell(name: HubName, where: str, taken: Sequence[str], why: str) -> None:
    more = f" and {len(taken) - SHOWN:,} more" if len(taken) > SHOWN else ""
    note(f"{name}: {where}: {', '.join(taken[:SHOWN])}{more} ({why})")


def _refused(name: HubName, error: Any) -> str:
    """What the hub's answer means."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{name.repo}"
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: accept its terms at {page}, and log in (hf auth login, or HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the data set has no revision {name.revision!r}; {page} lists them"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "no such file here, and no such data set on the Hugging Face hub, or a private one, "
            "for which to log in (hf auth login, or HF_TOKEN)"
        )
    return f"the hub did not give it ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
