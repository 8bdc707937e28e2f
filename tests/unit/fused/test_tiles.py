"""The feed-forward in tiles of the tokens against the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.fused import tiles
from llama.fused.install import install
from llama.model.config import LINEARS
from llama.model.kept import Kept
from tests.parity.test_packing import documents, loss_and_gradients, trained_model
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY

CPU = torch.device("cpu")
PACKINGS = {"uniform": [8, 8, 8], "mixed": [5, 9, 3]}


def result(
    kept: Kept, lengths: list[int], p: float, targets: tuple[str, ...] = LINEARS, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    made = trained_model(p, targets=targets, **options)
    assert install(made) is None
    made.keep([kept] * TINY.n_layers)
    torch.manual_seed(3)
    inputs = model_inputs(make_batch([documents(lengths)], 0), CPU)
    loss, gradients = loss_and_gradients(made, [inputs])
    return loss.detach(), torch.cat([g.flatten() for g in gradients.values()])


@pytest.mark.parametrize("size", [1, 4, 7, 16])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("targets", [("wq", "wv"), LINEARS, ("w1", "w2")], ids=str)
def test_tiles_give_what_the_whole_does(
    targets: tuple[str, ...], p: float, packing: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped by the same masks; within rounding, since sums over tokens are taken in parts."""
    lengths = PACKINGS[packing]
    loss, gradients = result(Kept.INPUT, lengths, p, targets)
    monkeypatch.setattr(tiles, "TOKENS", size)
    found, found_gradients = result(Kept.INPUT, lengths, p, targets)
    assert_close(found, loss, SMALL_MODEL)
    assert_close(found_gradients, gradients, SMALL_MODEL)
    on_host = result(Kept.HOST, lengths, p, targets)
    assert torch.equal(on_host[0], found) and torch.equal(on_host[1], found_gradients)


def test_an_adapter_that_began_from_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = result(Kept.INPUT, [5, 9], 0.3, start="pissa")
    monkeypatch.setattr(tiles, "TOKENS", 4)
    for found, whole in zip(result(Kept.HOST, [5, 9], 0.3, start="pissa"), expected, strict=True):
        assert_close(found, whole, SMALL_MODEL)


class _Widest(TorchDispatchMode):
    """The most rows of a tensor that is as wide as the feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in _tensors(out):
            if x.dim() == 2 and x.shape[1] == TINY.ffn_dim and x.shape[0] != TINY.dim:
                self.rows = max(self.rows, x.shape[0])
        return out


def _tensors(out: Any) -> Iterator[torch.Tensor]:
    for x in out if isinstance(out, tuple | list) else (out,):
        if isinstance(x, torch.Tensor):
            yield x


@pytest.mark.parametrize("kept", [Kept.HOST, Kept.INPUT, Kept.ATTENTION])
def test_none_of_its_tensors_is_whole(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where the middle of a block is kept, which is for memory that is there."""
    monkeypatch.setattr(tiles, "TOKENS", 9)
    with _Widest() as widest:
        result(kept, [20, 11], 0.3)
    assert widest.rows == (31 if kept > Kept.INPUT else 9)
