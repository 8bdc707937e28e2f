"""A recording that breaks off, with stand-ins for what only a GPU has."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama.fused import recorded
from llama.fused.recorded import is_usable, recording

POOL = (0, 1)


class Device:
    """Torch's current stream, and whether its allocator takes a recording to be under way. As torch
    has it, a recording that cannot be ended leaves both as they are within one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, can_be_ended: bool) -> None:
        self.stream: Any = SimpleNamespace(device_index=0)
        self.under_way: list[Any] = []
        self.said: list[str] = []
        self.cleared: list[list[Any]] = []

        @contextmanager
        def graph(_: Any, pool: Any, **__: Any) -> Any:
            before, self.stream = self.stream, SimpleNamespace(device_index=0)
            self.under_way.append(pool)
            try:
                yield
            finally:
                if not can_be_ended:
                    raise RuntimeError("operation failed due to a previous error during capture")
                self.under_way.remove(pool)
                self.stream = before

        def end(_: int, pool: Any) -> None:
            if pool not in self.under_way:
                raise RuntimeError("not currently recording to that pool")
            self.under_way.remove(pool)
            self.said.append("ended")

        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(
            torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream)
        )
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", self._clear, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self._release, raising=False)
        monkeypatch.setattr(recorded, "_BROKEN_OFF", [])

    def _clear(self) -> None:
        """In the memory of what is current."""
        self.cleared.append(list(self.under_way))

    def _release(self, *_: Any) -> None:
        self.said.append("released")


@pytest.mark.parametrize("can_be_ended", [True, False])
def test_a_recording_that_breaks_off_leaves_the_device_as_it_was(
    can_be_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(monkeypatch, can_be_ended)
    stream, graph = device.stream, object()
    with pytest.raises(RuntimeError), recording(graph, POOL):  # type: ignore[arg-type]
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert device.stream is stream and not device.under_way
    assert device.said == ([] if can_be_ended else ["ended", "released"])
    assert recorded._BROKEN_OFF == ([] if can_be_ended else [(graph, POOL)])
    assert device.cleared == [[], []]
    assert is_usable(POOL) == can_be_ended and is_usable((0, 2)) and not is_usable(None)


def test_one_that_ends_leaves_nothing_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, True)
    settled: list[str] = []
    beside = SimpleNamespace(settle=lambda: settled.append("settled"))
    with recording(object(), POOL, [beside]):  # type: ignore[arg-type]
        assert device.under_way == [POOL] and len(settled) == 1
    assert len(settled) == 2 and not device.under_way and not device.said
    assert device.cleared == [[], [POOL]]
