"""Ranks that read one another's memory, on CPUs: `Peers` whose memory is files that all map."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from llama.parallel import sums
from llama.parallel.peers import Shared


class Done:
    """On a CPU what was begun is done."""

    def wait(self) -> None:
        pass


class OnFiles:
    """What `llama/parallel/peers.py` does between GPUs."""

    def __init__(self, folder: Path, group: Any, device: torch.device) -> None:
        self.group, self.device = group, device
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self.met, self.multiprocessors = 0, 1
        self._folder, self._made = folder, 0

    def zeros(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def shared(self, own: torch.Tensor) -> Shared:
        files = [self._folder / f"{self._made}-{rank}" for rank in range(self.count)]
        self._made += 1
        if self.rank == 0:
            for file in files:
                file.write_bytes(bytes(own.nbytes))
        dist.barrier(self.group)
        mapped = [
            torch.from_file(str(f), shared=True, size=own.nbytes, dtype=torch.uint8) for f in files
        ]
        return Shared(self._made, mapped)

    def aside(self, number: int) -> AbstractContextManager[None]:
        assert number in (0, 1)
        return nullcontext()

    def begun(self) -> Done:
        return Done()

    def meet(self, shared: Shared, patience: timedelta) -> None:
        """On GPUs ranks that meet in different rooms wait for ever."""
        assert patience
        self.met += 1
        rooms = [torch.empty(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(rooms, torch.tensor([shared.handle]), group=self.group)
        assert len({int(room) for room in rooms}) == 1, "ranks meet in different rooms"


@contextmanager
def ranks_read_shares() -> Iterator[list[OnFiles]]:
    """Within it sums are taken so; gives the peers of each model, once its blocks are fused."""
    made: list[OnFiles] = []

    def peers_of(folder: Path, group: Any, device: torch.device) -> OnFiles:
        made.append(OnFiles(folder / str(len(made)), group, device))
        if dist.get_rank(group) == 0:
            made[-1]._folder.mkdir()
        return made[-1]

    with tempfile.TemporaryDirectory() as own:
        folders: list[Any] = [own]
        dist.broadcast_object_list(folders)
        with mock.patch.object(sums, "peers_of", partial(peers_of, Path(folders[0]))):
            yield made
        dist.barrier()
