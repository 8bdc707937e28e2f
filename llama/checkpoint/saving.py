"""Saving in the course of a run, in either form. Every rank must call these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama.adapters.peft_format import AdapterConfig
from llama.checkpoint.content import TRAINER, Checkpoint, trainer_text
from llama.checkpoint.manifest import MANIFEST, check_listed, manifest, read_manifest, written
from llama.checkpoint.shards import KEYS, MASTER, ShardedState, file_of, files_of
from llama.checkpoint.store import Store, told
from llama.checkpoint.writer import Writer
from llama.engine import Engine, Piece
from llama.engine.state import EngineState
from llama.errors import TrainingError
from llama.files.atomic import (
    abandon_folder,
    begin_folder,
    finish_folder,
    sync_folders,
    write_in,
)
from llama.files.safetensors import HashedTensorFile, Written
from llama.methods.method import Method
from llama.parallel.agreement import on_every, on_main

Make = Callable[[EngineState | ShardedState], Checkpoint]
"""The checkpoint of an engine's state; called on the main rank."""


class Saver(ABC):
    """Saves the run of one engine."""

    def __init__(self, engine: Engine, store: Store, keep: int) -> None:
        self.engine = engine
        self.store = store
        self.keep = keep

    @abstractmethod
    def save(self, make: Make, first: Callable[[], None], last: bool) -> None:
        """Call `first` on the main rank, then save. `last` says that the run ends here. Raises
        `TrainingError` on every rank; the checkpoints before are then as they were."""

    @property
    @abstractmethod
    def failed(self) -> Exception | None:
        """What went wrong since; on the main rank."""

    @abstractmethod
    def check(self) -> None:
        """Raise it."""

    @abstractmethod
    def wait(self) -> None:
        """Until all is on the disk; raises what went wrong."""


def saver_of(method: Method, engine: Engine, store: Store, keep: int) -> Saver:
    """In the form that suits what `method` trains."""
    if method.SHARDED:
        return ShardSaver(engine, store, keep, method.shapes())
    config = AdapterConfig(method.lora, method.source.name)
    return WholeSaver(engine, store, config, keep)


class WholeSaver(Saver):
    """The state is gathered, and the main rank writes it beside the next steps."""

    def __init__(self, engine: Engine, store: Store, config: AdapterConfig, keep: int) -> None:
        super().__init__(engine, store, keep)
        self._writer = Writer(store, config, keep)

    def save(self, make: Make, first: Callable[[], None], last: bool) -> None:
        own, mesh = self.engine.own_values(), self.engine.mesh
        _require_same(self.engine.replica_problems(own))
        state = self.engine.state(own)
        on_main(mesh, lambda: self._writer.save(make(state), first))
        if last:
            on_main(mesh, self._writer.wait)

    @property
    def failed(self) -> Exception | None:
        return self._writer.failed

    def check(self) -> None:
        self._writer.check()

    def wait(self) -> None:
        self._writer.wait()


class ShardSaver(Saver):
    """Each rank writes what it keeps, a tensor at a time, while training waits: there is no second
    copy of the state. The folder appears once all have written and read back their own."""

    def __init__(
        self, engine: Engine, store: Store, keep: int, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        super().__init__(engine, store, keep)
        self._shapes = shapes

    def save(self, make: Make, first: Callable[[], None], last: bool) -> None:
        engine, mesh = self.engine, self.engine.mesh
        _require_same(engine.parts.replica_problems())
        folder = self.store.path(engine.steps)
        try:
            partial = on_main(mesh, lambda: _begin(folder, first))
            own = on_every(mesh, lambda: self._write_own(folder, partial))
            every: list[Any] = [None] * mesh.world_size
            dist.all_gather_object(every, own)
            on_main(mesh, lambda: self._finish(folder, partial, make, every))
        except BaseException:
            if mesh.is_main:
                abandon_folder(folder)
            raise

    def _write_own(self, folder: Path, partial: Path) -> tuple[Written, list[Piece]]:
        """This rank's file, read back from the disk."""
        parts, name = self.engine.parts, file_of(self.engine.mesh.rank)
        pieces = parts.pieces()
        with told(folder):
            file = HashedTensorFile(
                partial / name,
                [
                    (f"{piece.name}.{key}", torch.float32, (piece.end - piece.start,))
                    for piece in pieces
                    for key in KEYS
                ],
            )
            try:
                for piece in pieces:
                    for key in KEYS:
                        values = parts.values(piece, None if key == MASTER else key)
                        if not torch.isfinite(values).all():
                            raise TrainingError(f"not saved: {piece.name}: {key}: not finite")
                        file.add(f"{piece.name}.{key}", values)
                file.finish()
            finally:
                file.close()
            listed = file.written()
            check_listed(partial, name, vars(listed))
        return listed, pieces

    def _finish(
        self, folder: Path, partial: Path, make: Make, every: list[tuple[Written, list[Piece]]]
    ) -> None:
        parts, names = self.engine.parts, files_of(len(every))
        state = ShardedState(
            partial,
            self.engine.mesh.tensor_parallel.size,
            self._shapes,
            parts.shard_dims(),
            dict(zip(names, (pieces for _, pieces in every), strict=True)),
            self.engine.counters(),
        )
        checkpoint = make(state)
        listed = dict(zip(names, (file for file, _ in every), strict=True))
        if problems := state.problems(set(names)):
            raise TrainingError(f"{folder}: the checkpoint could not be saved: {problems[0]}")
        with told(folder):
            text = trainer_text(checkpoint, shards=state.as_json())
            write_in(partial, TRAINER, text)
            listed[TRAINER] = written(text)
            write_in(partial, MANIFEST, manifest(checkpoint.step, listed))
            sync_folders(partial)
            read_manifest(partial, sum(file.bytes for file in listed.values()))
            check_listed(partial, TRAINER, vars(listed[TRAINER]))
            finish_folder(folder)
            self.store.remove_older(checkpoint.step, self.keep)

    @property
    def failed(self) -> Exception | None:
        """Nothing is done beside the steps."""
        return None

    def check(self) -> None: ...

    def wait(self) -> None: ...


def _begin(folder: Path, first: Callable[[], None]) -> Path:
    first()
    with told(folder):
        return begin_folder(folder)


def _require_same(problems: list[str]) -> None:
    if problems:
        raise TrainingError("\n".join(f"not saved: {line}" for line in problems))
