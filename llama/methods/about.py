"""What lies beside the tensors of what a run gives: how it came to be, and what it belongs to.

    training.json         for programs: base, tokenizer, template, data, settings, losses
    chat_template.jinja   the template as the run used it, where the hub's tools look for one
    README.md             for people, and for the hub: a model card, drawn from training.json

PEFT reads its own two files of the folder and takes no notice of these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.errors import UserError, raise_if
from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.pages.card import card
from llama.pages.sample import Sample
from llama.weights.fields import read_json_object, shorten

TRAINING, TEMPLATE, CARD = "training.json", "chat_template.jinja", "README.md"
FILES = (TRAINING, TEMPLATE, CARD)
FORMAT = 1
"""Raised when an older program could not read what is written."""


@dataclass(frozen=True)
class Origin:
    """What a run is made of; the same at each of its steps."""

    method: str
    base: Mapping[str, Any]
    """`name` as it was asked for, `path` where that is a place here, `hub` its name on the hub
    where it has one (of the bundled model, that of which it is a quantised copy),
    `sampled_sha256` of its weights."""
    tokenizer: Mapping[str, Any]
    """`sha256` of what it does, and `path` where it was asked for by one."""
    template: str
    """Its name."""
    jinja: str
    """Its source."""
    seq_len: int
    data: Sequence[Mapping[str, Any]]
    """Of each set its option, names, number of files, hash and counts."""
    settings: Mapping[str, Any]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class About:
    """What a run knows of what it gives at one step."""

    origin: Origin
    step: int
    eval_loss_before: float | None
    eval_loss: float | None
    """At this step; None where it was not evaluated here."""
    epoch_losses: Sequence[float | None]
    """None of an epoch of which no step counted."""

    def files(self, template: bool = True) -> dict[str, bytes]:
        """Name to content of `FILES`; the template only if asked for."""
        document = self._document()
        text = json_text(document, indent=2, ensure_ascii=False) + "\n"
        found = {TRAINING: _encoded(text), CARD: _encoded(card(document))}
        return found | ({TEMPLATE: self.origin.jinja.encode()} if template else {})

    def _document(self) -> dict[str, Any]:
        origin = self.origin
        return {
            "format": FORMAT,
            "method": origin.method,
            "base": dict(origin.base),
            "tokenizer": dict(origin.tokenizer),
            "template": {"name": origin.template, "file": TEMPLATE},
            "seq_len": origin.seq_len,
            "step": self.step,
            "losses": {
                "eval_loss_before": self.eval_loss_before,
                "eval_loss": self.eval_loss,
                "epoch_losses": list(self.epoch_losses),
            },
            "data": [dict(of_set) for of_set in origin.data],
            "settings": dict(origin.settings),
            "versions": dict(origin.versions),
        }


def files_of_combined(
    documents: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, bytes]:
    """Name to content of `FILES` but the template, of an adapter made of others, whose
    `training.json` are `documents`: of the first's base, with the data of all."""
    sets = [of_set for document in documents for of_set in document["data"]]
    document = {
        **documents[0],
        "step": None,
        "losses": {"eval_loss_before": None, "eval_loss": None, "epoch_losses": []},
        "data": [of_set for number, of_set in enumerate(sets) if of_set not in sets[:number]],
        "settings": dict(settings),
    }
    text = json_text(document, indent=2, ensure_ascii=False) + "\n"
    return {TRAINING: _encoded(text), CARD: _encoded(card(document))}


def complete_card(folder: Path, samples: Sequence[Sample]) -> None:
    """Draw the card of `folder` anew, with what the model said: a run asks it last. Raises
    `OSError`; the card is then as it was."""
    write_file(folder / CARD, _encoded(card(read_json_object(folder / TRAINING), samples)))


@dataclass(frozen=True)
class Recorded:
    """Of a folder's `training.json`, what decides how the adapter is used."""

    base: str
    """Its name as the run was given it."""
    base_path: Path | None
    """Where it lay then, if it was a place on that machine."""
    base_hash: str
    tokenizer_path: Path | None
    """The one that the run was told to use in place of the base's own."""
    tokenizer_hash: str
    template: str
    """Its name."""


def read_recorded(folder: Path) -> Recorded | None:
    """None where the folder has no `training.json`: another program wrote it, or an earlier one of
    ours. Raises `UserError` with all that is wrong with it."""
    file = folder / TRAINING
    if not os.path.lexists(file):
        return None
    document = read_json_object(file)
    if document.get("format") != FORMAT:
        found = shorten(document.get("format"))
        raise UserError(
            f"{file}: format {found} is not read by this program, which reads {FORMAT}: use the "
            "one that wrote it, or take the file away and give --model and --template"
        )
    problems: list[str] = []

    def text(section: str, name: str, optional: bool = False) -> str:
        within = document.get(section)
        value = within.get(name) if isinstance(within, dict) else None
        if isinstance(value, str) and value:
            return value
        if not (optional and value is None):
            problems.append(
                f"{file}: {section}.{name}: expected a text, found {shorten(value)}; write the "
                "adapter anew, or take the file away and give --model and --template"
            )
        return ""

    paths = [text("base", "path", True), text("tokenizer", "path", True)]
    base_path, tokenizer_path = (Path(path) if path else None for path in paths)
    found = Recorded(
        text("base", "name"),
        base_path,
        text("base", "sampled_sha256"),
        tokenizer_path,
        text("tokenizer", "sha256"),
        text("template", "name"),
    )
    raise_if(problems)
    return found


def _encoded(text: str) -> bytes:
    """Half a surrogate pair, as a file's name may hold, is written as JSON writes it."""
    return text.encode(errors="backslashreplace")
