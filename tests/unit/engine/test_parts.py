"""The checksum by which ranks compare what is too large to be sent."""

from __future__ import annotations

import pytest
import torch

from llama.engine import parts
from llama.engine.parts import checksum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_other_value_and_any_other_order_is_seen(dtype: torch.dtype) -> None:
    value = torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype)
    own = int(checksum(value))
    assert int(checksum(value.clone().view(5, 10))) == own
    bits = value.view(torch.int16 if dtype.itemsize == 2 else torch.int32)
    for place in range(50):
        for bit in range(8 * dtype.itemsize - 1):
            other = bits.clone()
            other[place] ^= 1 << bit
            assert int(checksum(other.view(dtype))) != own
    for place in range(49):
        other = value.clone()
        other[[place, place + 1]] = other[[place + 1, place]]
        assert int(checksum(other)) != own


def test_large_tensors_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.randn(1000)
    own = int(checksum(value))
    monkeypatch.setattr(parts, "_CHUNK", 7)
    assert int(checksum(value)) == own


def test_steps_up_and_down_alike_do_not_hide_one_another() -> None:
    """As Adam's first step moves the weights of a norm, all of them 1.0."""
    before = torch.ones(64)
    after = before + 1e-3 * torch.tensor([1.0, -1.0]).repeat(32)
    assert int(checksum(after)) != int(checksum(before))
