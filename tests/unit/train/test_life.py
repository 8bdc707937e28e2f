"""The watchdog hears of every block, in whatever form the block runs."""

from __future__ import annotations

import pytest
import torch

from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.files import life
from llama.fused.install import install
from llama.model.kept import Kept
from llama.train.life import show_life
from tests.parity.test_packing import documents, trained_model
from tests.support.model_files import TINY

INPUTS = model_inputs(make_batch([documents([5, 9, 3])], 0), torch.device("cpu"))
LAYERS = TINY.n_layers


@pytest.mark.parametrize("kept", Kept, ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_every_block_shows_life_forwards_and_backwards(
    fused: bool, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused form calls no module, and a plain block that is recomputed goes through
    `run_block` only once. The model's call shows life too."""
    model = trained_model(0.0)
    model.keep([kept] * LAYERS)
    if fused:
        assert install(model) is None
    beats: list[int] = []
    run_model = model.run_model
    monkeypatch.setattr(life, "show", lambda: beats.append(1))
    show_life(model)
    assert model.run_model is run_model, "which may be one that can forget"
    loss = model(**INPUTS)
    assert len(beats) == 1 + LAYERS
    loss.backward()
    assert len(beats) == 1 + 2 * LAYERS
    with torch.no_grad():
        model.eval()(**INPUTS)
    assert len(beats) == 2 + 3 * LAYERS


def test_showing_life_changes_neither_the_form_nor_the_numbers() -> None:
    """A hook on a block's module would send a fused block the plain way."""
    gradients = []
    for watched in (False, True):
        model = trained_model(0.0)
        assert install(model) is None
        calls: list[str] = []
        for block in model.layers:
            block.attention.register_forward_hook(lambda *_, calls=calls: calls.append("plain"))
        if watched:
            show_life(model)
        model(**INPUTS).backward()
        assert calls == []
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert gradients[0] and all(map(torch.equal, *gradients))
