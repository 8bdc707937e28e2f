"""Follows the memory of a computation: which storages live, of what kind they are, and what lived
when there was most of it."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Workspace = Callable[[Any, Sequence[Any], Mapping[str, Any]], int]
"""Bytes that one call of an operator takes for itself while it runs, of it and its arguments."""


class LiveStorages(TorchDispatchMode):
    """While it is entered, every storage that an operator makes is counted until it is freed.

    A tensor that is a view, and one that was changed in place, share the storage of another: it is
    storages that are counted, each once. They are held by weak references, so that following them
    keeps none alive. Real and fake tensors are followed alike. Storages that were there before are
    counted if they are told of by `add`.

    `kind` is what new storages are counted as; it may be set at any time."""

    def __init__(
        self, kind: str = "working", workspace: Workspace | None = None, whole: int = 1
    ) -> None:
        """`workspace` tells of each operator what its outputs do not show. A storage takes whole
        multiples of `whole` bytes."""
        super().__init__()
        self._whole = whole
        self.kind = kind
        self.live: Counter[str] = Counter()
        """Bytes that live now, by kind."""
        self.total = 0
        self.peak = 0
        """The most that `total` has been, with the workspace of the operator that ran."""
        self.at_peak: Counter[str] = Counter()
        """What lived then, by kind; `workspace` is what the running operator held for itself."""
        self._workspace = workspace
        self._held: dict[int, tuple[Any, str, int]] = {}  # by address: the reference, kind, bytes
        self._ignored: dict[int, Any] = {}
        self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self._paused:
            self.add(out)
            if self._workspace is not None:
                self._look(self._workspace(func, args, kwargs))
        return out

    def add(self, found: Any, kind: str | None = None) -> None:
        """Count the storages of the tensors in `found` (a tensor, or nested in lists, tuples and
        dictionaries) that are not counted yet; all of them as `kind`, if it is given."""
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._ignored:
                continue
            held = self._held.get(key)
            if held is not None and held[0]() is storage:
                self._grow(key, held, self._size(storage))
                if kind is not None:
                    self._set_kind(key, kind)
                continue
            size = self._size(storage)
            reference = weakref.ref(storage, lambda _, key=key: self._freed(key))
            self._held[key] = reference, kind or self.kind, size
            self._count(kind or self.kind, size)
        self._look(0)

    def ignore(self, found: Any) -> None:
        """Never count the storages of `found`."""
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            key = storage._cdata
            self._ignored[key] = weakref.ref(storage, lambda _, key=key: self._ignored.pop(key))

    def relabel(self, found: Any, kind: str) -> None:
        """Count the storages of `found` as `kind` from now on."""
        for tensor in _tensors(found):
            self._set_kind(tensor.untyped_storage()._cdata, kind)

    def relabel_all(self, old: str, kind: str) -> None:
        """Count all that is counted as `old` as `kind` from now on."""
        for key, (_, of, _) in list(self._held.items()):
            if of == old:
                self._set_kind(key, kind)

    def forget_peak(self) -> None:
        """Look for the peak anew from here."""
        self.peak, self.at_peak = 0, Counter()
        self._look(0)

    @contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Within, new storages are counted as `kind`."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, nothing new is counted: for what does not exist outside of a trace."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _size(self, storage: torch.UntypedStorage) -> int:
        return -(-storage.nbytes() // self._whole) * self._whole

    def _set_kind(self, key: int, kind: str) -> None:
        if key in self._held:
            reference, old, size = self._held[key]
            self._held[key] = reference, kind, size
            self.live[old] -= size
            self.live[kind] += size

    def _grow(self, key: int, held: tuple[Any, str, int], size: int) -> None:
        """A storage may be given another size."""
        reference, kind, before = held
        if size != before:
            self._held[key] = reference, kind, size
            self._count(kind, size - before)

    def _freed(self, key: int) -> None:
        _, kind, size = self._held.pop(key)
        self._count(kind, -size)

    def _count(self, kind: str, size: int) -> None:
        self.live[kind] += size
        self.total += size

    def _look(self, workspace: int) -> None:
        if self.total + workspace > self.peak:
            self.peak = self.total + workspace
            self.at_peak = Counter(self.live)
            self.at_peak["workspace"] += workspace


def every_tensor() -> list[torch.Tensor]:
    """The tensors with values of this process that Python knows of."""
    found = (x for x in gc.get_objects() if issubclass(type(x), torch.Tensor))
    return [x for x in found if x.layout == torch.strided and not x.is_meta]


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for item in found:
            yield from _tensors(item)
    elif isinstance(found, dict):
        yield from _tensors(list(found.values()))
