"""What the tests of one GPU share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llama.kernels import compiled as fusion


@pytest.fixture(scope="module")
def compiled() -> Iterator[None]:
    """Kernels are compiled, until the module is over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "_compiled", False)
        fusion.compile_kernels()
        yield
