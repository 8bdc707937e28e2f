"""A checkpoint whose tensors are whole, whatever the topology: small enough to be held at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from llama.adapters import peft_format
from llama.adapters.kinds import kind_of
from llama.adapters.peft_format import AdapterConfig
from llama.checkpoint.content import (
    TENSORS,
    TRAINER,
    Checkpoint,
    checkpoint_of,
    read_trainer,
    trainer_text,
)
from llama.checkpoint.manifest import MANIFEST, manifest, read_listed, written
from llama.engine.state import MOMENTS, EngineState
from llama.errors import TrainingError
from llama.methods import about
from llama.settings import LoRAOptions

OPTIMIZER = "optimizer.safetensors"
_ADAPTER = f"adapter/{peft_format.WEIGHTS}"
BESIDE = frozenset(f"adapter/{name}" for name in about.FILES)
"""What may be there too."""
FILES = (_ADAPTER, f"adapter/{peft_format.CONFIG}", OPTIMIZER, TRAINER)


def contents(checkpoint: Checkpoint, config: AdapterConfig) -> dict[str, bytes]:
    """Name to content of a checkpoint's files. Raises `TrainingError` where its tensors are more
    than the adapter's."""
    state = checkpoint.engine
    assert isinstance(state, EngineState)
    _check_tensors(state)
    moments = {
        f"{name}.{moment}": tensor.contiguous()
        for moment in MOMENTS
        for name, tensor in getattr(state, moment).items()
    }
    adapter = peft_format.contents(state.masters | state.fixed, config) | checkpoint.beside
    files = {
        **{f"adapter/{name}": content for name, content in adapter.items()},
        OPTIMIZER: safetensors.torch.save(moments),
        TRAINER: trainer_text(checkpoint),
    }
    listed = {name: written(content) for name, content in files.items()}
    return {**files, MANIFEST: manifest(checkpoint.step, listed)}


def _check_tensors(state: EngineState) -> None:
    """The base model is never in a checkpoint, nor anything else but the adapter."""
    adapter, found = (
        sum(tensor.numel() for kind in kinds for tensor in getattr(state, kind).values())
        for kinds in (("masters",), ("masters", *MOMENTS))
    )
    if found != TENSORS * adapter:
        raise TrainingError(
            f"the checkpoint would hold {4 * found:,} bytes of tensors, and {adapter:,} adapter "
            f"parameters need {TENSORS * 4 * adapter:,}: something other than the adapter is in it"
        )


def read_whole(
    folder: Path, manifest: dict[str, Any]
) -> tuple[Checkpoint, dict[str, Any], list[str]]:
    """The checkpoint, its `trainer.json`, and what is wrong with the tensors. Every byte is checked
    against the manifest before it is used, and what was checked is what is used."""
    listed = manifest["files"].items()
    files = {name: read_listed(folder, name, entry) for name, entry in listed}
    trainer = read_trainer(files[TRAINER])
    masters = peft_format.from_peft(safetensors.torch.load(files[_ADAPTER]), _ADAPTER)
    adapters = _adapters(trainer["identity"])
    masters = peft_format.held(masters, adapters)
    moments = safetensors.torch.load(files[OPTIMIZER])
    keeps = kind_of(adapters).FIXED
    fixed = {name: masters.pop(name) for name in [*masters] if name.rpartition(".")[2] in keeps}
    averages = {
        moment: {name: moments.pop(f"{name}.{moment}") for name in masters} for moment in MOMENTS
    }
    state = EngineState(masters, **averages, fixed=fixed, counters=dict(trainer["counters"]))
    problems = ["its files are of different checkpoints"] if moments else _state_problems(state)
    return checkpoint_of(state, trainer), trainer, problems


def _adapters(identity: Mapping[str, Any]) -> LoRAOptions:
    """Of the settings of a run's adapters those that say what its tensors are; runs that say
    nothing of them were made before there was a choice."""
    plain = LoRAOptions()
    return LoRAOptions(
        kind=identity.get("lora.kind", plain.kind), start=identity.get("lora.start", plain.start)
    )


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
