"""Where a model's own chat templates come from, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama.errors import UserError
from llama.files.outside import TOKENIZER_BYTES, read_bytes, refused
from llama.notes import note

DEFAULT = "default"
FOLDER = "additional_chat_templates"


def read_templates(folder: Path, field: Any, source: Path) -> dict[str, str]:
    """The templates in files of `folder`, else in `field`: the `chat_template` of `source`.

    As in transformers, files go before the field, whole: `chat_template.jinja` is the one named
    `default`, `additional_chat_templates/NAME.jinja` the others. UserError for what is no template.
    """
    main = folder / "chat_template.jinja"
    files = {DEFAULT: main} if main.exists() else {}
    files |= {path.stem: path for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / "chat_template.json").exists():
        note(f"{folder / 'chat_template.json'}: not used: it is for a processor of images")
    if not files:
        return templates_of(field, source)
    found: dict[str, str] = {}
    for name, path in files.items():
        data = read_bytes(path, "a Jinja chat template", TOKENIZER_BYTES)
        with refused(path, "is not UTF-8 text"):
            found[name] = data.decode("utf-8-sig")
    within = templates_of(field, source)
    if within and within != found:
        note(f"{source}: its `chat_template` is not used: the folder has templates in files")
    return found


def templates_of(field: Any, source: Path) -> dict[str, str]:
    """Templates written as one text, as an object, or as a list of objects with `name` and
    `template`. UserError naming `source` for anything else."""
    if field is None or field == "":
        return {}
    if isinstance(field, str):
        return {DEFAULT: field}
    pairs: list[tuple[Any, Any]] = list(field.items()) if isinstance(field, dict) else []
    if isinstance(field, list):
        entries = [entry if isinstance(entry, dict) else {} for entry in field]
        pairs = [(entry.get("name"), entry.get("template")) for entry in entries]
    if not pairs or not all(isinstance(part, str) and part for pair in pairs for part in pair):
        raise UserError(
            f"{source}: its chat template is no text and no list of `name` and `template`; mend "
            "it, or give another --tokenizer"
        )
    return dict(pairs)


def choose(templates: dict[str, str], name: str | None) -> tuple[str, str] | None:
    """Name and source of the template asked for; with no name, of the model's default. None where
    the model has none (of that name). UserError where it has some and none is the default."""
    if name is not None:
        return (name, templates[name]) if name in templates else None
    if not templates:
        return None
    if DEFAULT not in templates:
        raise UserError(
            f"the model has chat templates named {', '.join(sorted(templates))}, and none named "
            f"{DEFAULT}: choose one with --template NAME"
        )
    return DEFAULT, templates[DEFAULT]
