"""Into which groups the processes of a run are divided."""

from __future__ import annotations

from typing import Protocol


class Degrees(Protocol):
    """The options that say it."""

    @property
    def tensor_parallel(self) -> int: ...
    @property
    def sequence_parallel(self) -> int: ...


def check_degree(tensor_parallel: int, world_size: int, of: str = "") -> list[str]:
    """Whether the degree of tensor parallelism divides the processes, or what `of` names."""
    if tensor_parallel < 1:
        return [f"--tensor_parallel: expected at least 1, found {tensor_parallel}"]
    return _divided("tensor_parallel", tensor_parallel, f"{tensor_parallel}", world_size, of)


def check_degrees(options: Degrees, world_size: int, of: str = "") -> list[str]:
    """The same of both degrees: a model's shards times those that share its tokens."""
    shards, ranks = options.tensor_parallel, options.sequence_parallel
    problems = check_degree(shards, world_size, of)
    if ranks < 1:
        return [*problems, f"--sequence_parallel: expected at least 1, found {ranks}"]
    if problems or ranks == 1:
        return problems
    said = f"{ranks}" if shards == 1 else f"{shards} x {ranks} (--tensor_parallel x this)"
    return _divided("sequence_parallel", shards * ranks, said, world_size, of)


def readers(options: Degrees, world_size: int) -> int | None:
    """Into how many groups that each read rows of their own the processes are divided; None where
    they cannot be."""
    count, rest = divmod(world_size, max(1, options.tensor_parallel * options.sequence_parallel))
    return None if rest or not count else count


def _divided(option: str, size: int, said: str, world_size: int, of: str) -> list[str]:
    if world_size % size == 0:
        return []
    if of:
        return [f"--{option}: {said} does not divide the {world_size} {of}"]
    ranks = f"{world_size} process{'es' if world_size > 1 else ''}"
    return [
        f"--{option}: {ranks} cannot be divided into groups of {said}; start a multiple of it "
        "(deepspeed --num_gpus N)"
    ]
