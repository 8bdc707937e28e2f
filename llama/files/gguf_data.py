"""The numbers of a tensor on their way into a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np


class Data(np.ndarray[Any, Any]):
    """An array that the package `gguf` writes as any other. numpy's own `tofile`, which it calls,
    says of a full disk how many numbers were written, and not why the others were not."""

    def tofile(self, fid: Any, sep: str = "", format: str = "%s") -> None:
        fid.write(np.ascontiguousarray(self).data)


def data_of(array: np.ndarray[Any, Any]) -> Data:
    """The same memory."""
    return array.view(Data)
