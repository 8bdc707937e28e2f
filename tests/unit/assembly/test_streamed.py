"""Logits of a model that is read as it is multiplied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama.assembly.model import ready_model
from llama.assembly.streamed import shortfalls, streamed_logits
from llama.errors import UserError
from llama.model.documents import Documents
from llama.weights.open_model import open_model
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY, random_state, write_gguf, write_meta

IDS = [3, 17, 5, 90, 41]


@pytest.mark.parametrize("write", [write_meta, write_gguf])
def test_they_are_those_of_the_model_in_memory(
    write: Callable[..., object], tmp_path: Path
) -> None:
    write(tmp_path / "model.gguf", TINY, random_state(TINY))
    source = open_model(str(tmp_path / "model.gguf"))
    model, ids = ready_model(source, None, "float32"), torch.tensor(IDS)
    with torch.no_grad():
        expected = model(ids, torch.arange(len(IDS)), Documents((0, len(IDS))))
    assert_close(streamed_logits(source.reader, IDS, {}, {}), expected, SMALL_MODEL)
    (found,) = shortfalls(source.reader, [IDS], {}, {})
    taken = expected[:-1].gather(1, ids[1:, None]).squeeze(1)
    assert_close(found, expected[:-1].amax(dim=1) - taken, SMALL_MODEL)


@pytest.mark.parametrize(
    "name",
    [
        *("tok_embeddings.weight", "norm.weight", "output.weight"),
        *("layers.1.attention.wk.weight", "layers.0.feed_forward.w2.weight"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(name: str, value: float, tmp_path: Path) -> None:
    state = random_state(TINY)
    state[name].view(-1)[IDS[0] * state[name].shape[-1] if "tok" in name else 7] = value
    write_meta(tmp_path, TINY, state)
    with pytest.raises(UserError) as raised:
        streamed_logits(open_model(str(tmp_path)).reader, IDS, {}, {})
    (line,) = raised.value.problems
    assert f"{name}: the weights hold NaN or infinity" in line
