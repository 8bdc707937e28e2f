"""Work on which all ranks agree: what goes wrong on one is raised on every one, so that none is
left waiting in a collective for another that has failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from llama.errors import TrainingError, UserError, raise_if
from llama.parallel.mesh import Mesh

T = TypeVar("T")


@dataclass
class _Outcome(Generic[T]):
    """What came of the work on one rank."""

    result: T | None = None
    problems: list[str] = field(default_factory=list)
    """Of the user's."""
    failure: str | None = None
    """Of any other kind, in words."""


def on_main(mesh: Mesh, work: Callable[[], T]) -> T:
    """What `work` gives on the main rank, on every rank, all of which must call this and wait for
    it. What it raises there is raised on every rank: `UserError` as it is, anything else as
    `TrainingError`."""
    outcome, error = _tried(work) if mesh.is_main else (_Outcome[T](), None)
    if mesh.world_size > 1:
        mesh.wait()
        shared: list[Any] = [outcome]
        dist.broadcast_object_list(shared, src=0)
        outcome = shared[0]
    return _agreed([outcome], outcome, error)


def on_every(mesh: Mesh, work: Callable[[], T]) -> T:
    """What `work` gives on this rank. Every rank must call it; those that are done first wait for
    the others. What it raises on any rank is raised on all: `UserError` with the problems of all
    ranks, anything else as `TrainingError`."""
    if mesh.world_size == 1:
        return work()
    outcome, error = _tried(work)
    mesh.wait()
    told: list[Any] = [None] * mesh.world_size
    dist.all_gather_object(told, _Outcome(None, outcome.problems, outcome.failure))
    return _agreed(told, outcome, error)


def _tried(work: Callable[[], T]) -> tuple[_Outcome[T], Exception | None]:
    try:
        return _Outcome(work()), None
    except UserError as error:
        return _Outcome(problems=error.problems), error
    except Exception as error:
        said = (
            str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
        )
        return _Outcome(failure=said), error


def _agreed(told: list[_Outcome[Any]], own: _Outcome[T], error: Exception | None) -> T:
    """The own result, unless any rank has told of a problem."""
    problems = list(dict.fromkeys(problem for outcome in told for problem in outcome.problems))
    failures = list(dict.fromkeys(outcome.failure for outcome in told if outcome.failure))
    try:
        if failures:
            raise TrainingError("\n".join(failures))
        raise_if(problems)
    except (TrainingError, UserError) as agreed:
        raise agreed from error
    return own.result  # type: ignore[return-value]
