"""Files as `torch.save` makes them of plain tensors by name, written a tensor at a time.

The format is an uncompressed zip archive: `data.pkl`, a pickle in which each tensor's memory is a
persistent id, and that memory as an entry `data/KEY` (torch/serialization.py, `_save`). What is
written loads with `torch.load(weights_only=True)`, mapped or not.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch

_ROOT = "archive"
_ALIGNMENT = 64
"""Of each tensor's memory in the file, so that it can be used where it is mapped."""
_STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}
_ZIP64_BYTES = 20
"""What zipfile adds to the head of an entry that may be large."""


class _Storage:
    def __init__(self, key: str, dtype: torch.dtype, elements: int) -> None:
        self.id = ("storage", _STORAGES[dtype], key, "cpu", elements)


class _Tensor:
    """Pickled as the tensor would be that it stands for."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple[Any, ...]:
        stride = tuple(prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        rebuild = torch._utils._rebuild_tensor_v2  # pyright: ignore[reportAttributeAccessIssue]
        return rebuild, (self.storage, 0, self.shape, stride, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, _Storage) else None


class _Zip(zipfile.ZipFile):
    def __del__(self) -> None:
        """Nothing: zipfile would write the end of an archive that was given up."""


class TorchArchive:
    """A new file of tensors in `dtype`. Raises `OSError` as the system does."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """Name and shape of each tensor, in the order in which they will come; `aliases` are more
        names, each of one of them."""
        self._to_come = list(shapes)
        self._dtype = dtype
        tensors = {
            name: _Tensor(_Storage(str(key), dtype, prod(shape)), shape)
            for key, (name, shape) in enumerate(shapes.items())
        }
        tensors |= {alias: tensors[name] for alias, name in (aliases or {}).items()}
        pickled = io.BytesIO()
        _Pickler(pickled, protocol=2).dump(tensors)
        self._key = 0
        self._file = path.open("xb")
        self._zip = _Zip(self._file, "w", zipfile.ZIP_STORED)
        self._write("data.pkl", memoryview(pickled.getvalue()))
        self._write("byteorder", memoryview(sys.byteorder.encode()))

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """The next tensor."""
        assert self._to_come[self._key] == name and tensor.dtype == self._dtype, name
        flat = tensor.detach().cpu().contiguous().flatten()
        self._write(f"data/{self._key}", flat.view(torch.uint8).numpy().data)
        self._key += 1

    def _write(self, name: str, content: memoryview) -> None:
        entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
        entry.file_size = content.nbytes
        large = content.nbytes * 1.05 > zipfile.ZIP64_LIMIT  # zipfile's own rule
        head = 30 + len(entry.filename) + 4 + (_ZIP64_BYTES if large else 0)
        fill = -(self._file.tell() + head) % _ALIGNMENT
        entry.extra = b"FB" + fill.to_bytes(2, "little") + b"Z" * fill  # as torch marks it
        with self._zip.open(entry, "w") as into:
            into.write(content)

    def finish(self) -> None:
        """Have all of it on the disk."""
        assert self._key == len(self._to_come), "a tensor has not come"
        self._write("version", memoryview(b"3\n"))
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Let go of the file, finished or not. Its last bytes may find no room on a full disk, and
        if it is not finished nobody wants them."""
        with suppress(OSError):
            self._file.close()
