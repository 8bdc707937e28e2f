"""The list of a checkpoint's files: size and SHA-256 of each, and of the list itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from llama.errors import UserError
from llama.files import life
from llama.files.inputs import file_problem, is_folder, read_text
from llama.files.json_text import json_text
from llama.files.kinds import SAFETENSORS, TEXTS
from llama.files.safetensors import Written

FORMAT = 3
"""Raised when an older program could not read what is written."""
MANIFEST = "manifest.json"
_CHUNK = 1 << 22


def written(content: bytes) -> Written:
    """What is listed of a file with this content."""
    return Written(len(content), hashlib.sha256(content).hexdigest())


def manifest(step: int, files: dict[str, Written]) -> bytes:
    """The list of `files`."""
    listed = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in files.items()}
    return manifest_text({"format": FORMAT, "step": step, "files": listed})


def manifest_text(document: dict[str, Any]) -> bytes:
    """The one way to write a manifest, so that no bit of it can change unseen."""
    own = hashlib.sha256(json_text(document, sort_keys=True).encode()).hexdigest()
    return (json_text({**document, "sha256": own}, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path, most: int) -> dict[str, Any]:
    """The manifest in `folder`, right to the last bit, of at most `most` bytes of files. Raises
    `UserError`."""
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder; give a checkpoint, as RUN/checkpoints/step-N")
    path = folder / MANIFEST
    text = read_text(path)
    try:
        document = json.loads(text)
        newer, older = document["format"] > FORMAT, document["format"] < FORMAT
        listed = {name: entry["bytes"] for name, entry in document["files"].items()}
        canonical = manifest_text({k: document[k] for k in ("format", "step", "files")})
        sizes = list(listed.values())
        sound = text.encode() == canonical and all(type(size) is int for size in sizes)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise UserError(f"{path}: damaged: it is not a checkpoint's list of files") from None
    if newer:
        raise UserError(
            f"{path}: format {document['format']} is a newer program's; this one reads {FORMAT}"
        )
    if older and sound:
        raise UserError(
            f"{path}: format {document['format']} is an older program's; this one reads {FORMAT}: "
            "go on with the program that wrote it"
        )
    if not sound:
        raise UserError(f"{path}: damaged: its own SHA-256 does not agree")
    if sum(sizes) > most:
        raise UserError(f"{path}: lists {sum(sizes):,} bytes, more than any run needs here")
    return document


def read_listed(folder: Path, name: str, entry: dict[str, Any]) -> bytes:
    """A listed file that is what was saved. Raises `UserError`."""
    path = folder / name
    if path.parent.is_symlink():
        raise UserError(f"{path.parent}: is a link; a folder is expected")
    content = read_saved(path, entry["bytes"])
    _require(path, hashlib.sha256(content).hexdigest(), entry)
    return content


def check_listed(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """The same of a file of any size, which is read once and not kept."""
    found = hashlib.sha256()
    with open_saved(folder / name, entry["bytes"]) as file:
        while chunk := file.read(_CHUNK):
            life.show()
            found.update(chunk)
    _require(folder / name, found.hexdigest(), entry)


def _require(path: Path, sha256: str, entry: dict[str, Any]) -> None:
    if sha256 != entry.get("sha256"):
        raise UserError(f"{path}: damaged, or another checkpoint's: its SHA-256 does not agree")


def read_saved(path: Path, size: int) -> bytes:
    """All of a regular file of `size` bytes, no link followed; `UserError` where it is not that."""
    with open_saved(path, size) as file:
        return file.read(size)


@contextmanager
def open_saved(path: Path, size: int) -> Iterator[BinaryIO]:
    """The same, open; what goes wrong with reading it is a `UserError` too."""
    if path.is_symlink():
        raise UserError(f"{path}: is a link; a file is expected")
    if problem := file_problem(path, (SAFETENSORS, *TEXTS)):
        raise UserError(f"{path}: {problem}")
    found = path.stat().st_size
    if found != size:
        raise UserError(f"{path}: damaged: {size:,} bytes were saved, and it has {found:,}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            _forget(descriptor)
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _forget(descriptor: int) -> None:
    """Have what is read come from the disk, not from the memory it was written from."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
