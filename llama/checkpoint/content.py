"""One checkpoint: to the bytes of its files and back, refusing every byte that was not saved."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from llama.adapters import peft_format
from llama.adapters.peft_format import AdapterConfig
from llama.engine.state import MOMENTS, EngineState
from llama.errors import TrainingError, UserError, raise_if
from llama.files.inputs import file_problem, is_folder, read_text
from llama.files.json_text import json_text
from llama.files.kinds import SAFETENSORS, TEXTS

FORMAT = 2
"""Raised when an older program could not read what is written."""
MANIFEST, OPTIMIZER, TRAINER = "manifest.json", "optimizer.safetensors", "trainer.json"
_TENSORS = 1 + len(MOMENTS)
"""Of each adapter tensor."""
_BESIDE = 1 << 26
"""Bytes that what is no tensor may take: the names of some thousand tensors, thrice, and a summary
with the losses of two million epochs."""
_ADAPTER = f"adapter/{peft_format.WEIGHTS}"
_ILL_FORMED = (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What a document raises that is not what this program writes, though its hash agrees."""
_FILES = (_ADAPTER, f"adapter/{peft_format.CONFIG}", OPTIMIZER, TRAINER)


@dataclass
class RunState:
    """Where a run stands, beside its engine's state: with both it goes on as if never stopped."""

    epoch: int = 0
    window: int = 0
    """The next window of the epoch; above 0 as long as the epoch has not been ended."""
    loss_sum: float = 0.0
    supervised: int = 0
    """Of the epoch so far."""
    tokens: int = 0
    step_seconds: float = 0.0
    """Of the steps so far; evaluating and saving is not in it."""
    seconds: float = 0.0
    """Of the whole run so far."""
    metrics_lines: int = 0
    trains: bool = False
    """Whether every adapter tensor was seen to train."""
    samples_before: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """All that a checkpoint holds."""

    engine: EngineState
    run: RunState
    total_steps: int
    identity: dict[str, Any]
    """What the run is made of; a run that differs in any of it is another."""
    topology: dict[str, Any]
    """How it was spread; this may change."""
    random: dict[str, str]
    """State of torch's generators, in hex."""

    @property
    def step(self) -> int:
        return int(self.engine.counters["steps"])


def contents(checkpoint: Checkpoint, config: AdapterConfig) -> dict[str, bytes]:
    """Name to content of a checkpoint's files. Raises `TrainingError` where its tensors are more
    than the adapter's."""
    state = checkpoint.engine
    _check_tensors(state)
    moments = {
        f"{name}.{moment}": tensor.contiguous()
        for moment in MOMENTS
        for name, tensor in getattr(state, moment).items()
    }
    trainer = {
        "format": FORMAT,
        "step": checkpoint.step,
        "total_steps": checkpoint.total_steps,
        "counters": state.counters,
        "run": asdict(checkpoint.run),
        "identity": checkpoint.identity,
        "topology": checkpoint.topology,
        "random": checkpoint.random,
    }
    adapter = peft_format.contents(state.masters, config)
    files = {
        **{f"adapter/{name}": content for name, content in adapter.items()},
        OPTIMIZER: safetensors.torch.save(moments),
        TRAINER: (json_text(trainer, indent=1) + "\n").encode(),
    }
    files[MANIFEST] = _manifest(checkpoint.step, files)
    return files


def most_bytes(parameters: int) -> int:
    """What a checkpoint of so many adapter parameters may take on the disk: a float32 master and
    two moments of each, and the names and numbers beside them."""
    return _TENSORS * 4 * parameters + _BESIDE


def _check_tensors(state: EngineState) -> None:
    """The base model is never in a checkpoint, nor anything else but the adapter."""
    adapter, found = (
        sum(tensor.numel() for kind in kinds for tensor in getattr(state, kind).values())
        for kinds in (("masters",), ("masters", *MOMENTS))
    )
    if found != _TENSORS * adapter:
        raise TrainingError(
            f"the checkpoint would hold {4 * found:,} bytes of tensors, and {adapter:,} adapter "
            f"parameters need {_TENSORS * 4 * adapter:,}: something other than the adapter is in it"
        )


def _manifest(step: int, files: dict[str, bytes]) -> bytes:
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    return _manifest_text({"format": FORMAT, "step": step, "files": listed})


def _manifest_text(document: dict[str, Any]) -> bytes:
    """The one way to write a manifest, so that no bit of it can change unseen."""
    own = hashlib.sha256(json_text(document, sort_keys=True).encode()).hexdigest()
    return (json_text({**document, "sha256": own}, indent=1, sort_keys=True) + "\n").encode()


def read(folder: Path, most: int) -> Checkpoint:
    """The checkpoint in `folder`, of at most `most` bytes. Every byte is checked against the
    manifest before it is used, and what was checked is what is used. Raises `UserError` with the
    first thing that is wrong."""
    manifest = _read_manifest(folder, most)
    files = {name: _read_listed(folder, name, manifest["files"][name]) for name in _FILES}
    try:
        trainer = json.loads(files[TRAINER])
        masters = peft_format.from_peft(safetensors.torch.load(files[_ADAPTER]), _ADAPTER)
        moments = safetensors.torch.load(files[OPTIMIZER])
        averages = [
            {name: moments.pop(f"{name}.{moment}") for name in masters} for moment in MOMENTS
        ]
        checkpoint = Checkpoint(
            engine=EngineState(masters, *averages, counters=dict(trainer["counters"])),
            run=_run_state(trainer["run"]),
            total_steps=int(trainer["total_steps"]),
            identity=dict(trainer["identity"]),
            topology=dict(trainer["topology"]),
            random=dict(trainer["random"]),
        )
        steps = {checkpoint.step, trainer["step"], manifest["step"]}
    except _ILL_FORMED as error:
        raise UserError(
            f"{folder}: not a checkpoint of this program: {str(error)[:200]!r}"
        ) from None
    if moments or len(steps) > 1:
        raise UserError(f"{folder}: its files are of different checkpoints")
    raise_if([f"{folder}: {problem}" for problem in _state_problems(checkpoint.engine)])
    return checkpoint


def _state_problems(state: EngineState) -> list[str]:
    problems = []
    for name, master in state.masters.items():
        for what in ("masters", *MOMENTS):
            tensor = getattr(state, what)[name]
            if tensor.dtype != torch.float32 or tensor.shape != master.shape:
                problems.append(f"{name}: {what}: expected float32 of shape {tuple(master.shape)}")
            elif not torch.isfinite(tensor).all():
                problems.append(f"{name}: {what}: not finite")
    return problems


def _run_state(document: dict[str, Any]) -> RunState:
    """Raises `TypeError` for a field that is missing, unknown or of another type."""
    fresh = asdict(RunState())
    for name, default in fresh.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(document.get(name), kinds):
            raise TypeError(f"{TRAINER}: run.{name}: found {document.get(name)!r}")
    return RunState(**document)


def _read_manifest(folder: Path, most: int) -> dict[str, Any]:
    """The manifest, right to the last bit, listing the files of a checkpoint and no others."""
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder; give a checkpoint, as RUN/checkpoints/step-N")
    path = folder / MANIFEST
    text = read_text(path)
    try:
        document = json.loads(text)
        newer, older = document["format"] > FORMAT, document["format"] < FORMAT
        listed = {name: entry["bytes"] for name, entry in document["files"].items()}
        canonical = _manifest_text({k: document[k] for k in ("format", "step", "files")})
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
    if strange := listed.keys() ^ set(_FILES):
        raise UserError(f"{path}: lists other files than a checkpoint's: {sorted(strange)[0]!r}")
    if sum(sizes) > most:
        raise UserError(f"{path}: lists {sum(sizes):,} bytes, more than any adapter needs here")
    return document


def _read_listed(folder: Path, name: str, entry: dict[str, Any]) -> bytes:
    path = folder / name
    if path.parent.is_symlink():
        raise UserError(f"{path.parent}: is a link; a folder is expected")
    content = read_saved(path, entry["bytes"])
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise UserError(f"{path}: damaged, or another checkpoint's: its SHA-256 does not agree")
    return content


def read_saved(path: Path, size: int) -> bytes:
    """All of a regular file of `size` bytes, no link followed; `UserError` where it is not that."""
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
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _forget(descriptor: int) -> None:
    """Have what is read come from the disk, not from the memory it was written from."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
