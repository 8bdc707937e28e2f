"""What one rank does for all: none is left waiting in a collective for one that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from llama.errors import TrainingError, UserError
from llama.parallel.mesh import Mesh

T = TypeVar("T")


def on_main(mesh: Mesh, work: Callable[[], T]) -> T:
    """What `work` gives on the main rank, on every rank, all of which must call this and wait for
    it. What it raises there is raised on every rank: `UserError` as it is, anything else as
    `TrainingError`."""
    outcome: list[object] = [None, None]
    error: Exception | None = None
    if mesh.is_main:
        try:
            outcome[0] = work()
        except Exception as caught:
            error = caught
            outcome[1] = caught.problems if isinstance(caught, UserError) else _told(caught)
    if mesh.world_size > 1:
        mesh.wait()
        dist.broadcast_object_list(outcome, src=0)
    result, problem = outcome
    if isinstance(problem, list):
        raise UserError(problem) from error
    if problem is not None:
        raise TrainingError(problem) from error
    return result  # type: ignore[return-value]


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
