"""A checkpoint from its folder, of whichever form, refusing every byte that was not saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama.checkpoint import shards
from llama.checkpoint.content import (
    ILL_FORMED,
    TRAINER,
    Checkpoint,
    checkpoint_of,
    read_trainer,
)
from llama.checkpoint.manifest import MANIFEST, check_listed, read_listed, read_manifest
from llama.checkpoint.whole import BESIDE, FILES, read_whole
from llama.errors import UserError, raise_if


def read(folder: Path, most: int) -> Checkpoint:
    """The checkpoint in `folder`, of at most `most` bytes. Raises `UserError` with the first thing
    that is wrong."""
    manifest = read_manifest(folder, most)
    listed = set(manifest["files"])
    is_sharded = listed == {TRAINER, *shards.files_of(len(listed) - 1)} and len(listed) > 1
    if not is_sharded and (strange := (listed - BESIDE) ^ set(FILES)):
        name = f"lists other files than a checkpoint's: {sorted(strange)[0]!r}"
        raise UserError(f"{folder / MANIFEST}: {name}")
    try:
        checkpoint, trainer, problems = (_read_sharded if is_sharded else read_whole)(
            folder, manifest
        )
        steps = {checkpoint.step, trainer["step"], manifest["step"]}
    except UserError:
        raise
    except ILL_FORMED as error:
        raise UserError(
            f"{folder}: not a checkpoint of this program: {str(error)[:200]!r}"
        ) from None
    if len(steps) > 1:
        raise UserError(f"{folder}: its files are of different checkpoints")
    raise_if([f"{folder}: {problem}" for problem in problems])
    return checkpoint


def _read_sharded(
    folder: Path, manifest: dict[str, Any]
) -> tuple[Checkpoint, dict[str, Any], list[str]]:
    """As `read_whole`. The tensors stay in the files, which are read through once."""
    trainer = read_trainer(read_listed(folder, TRAINER, manifest["files"][TRAINER]))
    state = shards.ShardedState.of_json(folder, trainer["shards"], dict(trainer["counters"]))
    problems = state.problems(manifest["files"].keys() - {TRAINER})
    if not problems:
        for name in state.files:
            check_listed(folder, name, manifest["files"][name])
    return checkpoint_of(state, trainer), trainer, problems
