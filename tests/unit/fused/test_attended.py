"""`Attended`: what is left of one."""

from __future__ import annotations

import gc
import weakref

import torch

from llama.fused.attended import Attended
from llama.model.documents import Documents


def test_one_that_never_goes_back_leaves_nothing() -> None:
    """As where memory runs out in a later part of a step, which is then taken again: what autograd
    saved for a step that is given up must not hold itself alive."""
    qkv = tuple(torch.randn(8, 2, 16) for _ in range(3))
    left = [weakref.ref(x) for x in qkv]
    attended = Attended(qkv, Documents((0, 8)), keep_inputs=True)
    del attended, qkv
    gc.collect()
    assert [x() for x in left] == [None] * 3
