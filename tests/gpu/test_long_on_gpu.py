"""What long rows take on a CUDA device: block inputs in host memory, the feed-forward in tiles, and
places of elements beyond 32 bits."""

from __future__ import annotations

import gc

import pytest
import torch

from llama.fused import install as fused_install
from llama.fused import offload, tiles
from llama.model.kept import Kept
from tests.gpu.test_fused_block_on_gpu import result
from tests.gpu.test_kernels_on_gpu import CUDA, GRADIENTS, LOSS, difference, model
from tests.support.skips import needs_gpus

pytestmark = [
    pytest.mark.gpu,
    needs_gpus(),
]
DTYPE = torch.bfloat16
BEYOND = 2**31
"""More elements than 32 bits with a sign can number."""


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("tile", [8192, 96], ids=["whole", "tiles"])
def test_inputs_in_host_memory_change_nothing(
    tile: int, late: bool, p: float, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pass after pass, over batches that grow and shrink; of rows whose attention adds up in one
    order, so bit for bit."""
    monkeypatch.setattr(tiles, "TOKENS", tile)
    monkeypatch.setattr(offload, "LATE", 1 if late else 2**60)
    made = model(DTYPE, DTYPE)
    assert fused_install.install(made) is None
    for lengths in ([256] * 2, [256] * 2, [256] * 4, [256]):
        found, gradients = result(made, lengths, Kept.HOST, p)
        expected, on_device = result(made, lengths, Kept.INPUT, p)
        assert found == expected and torch.equal(gradients, on_device)


def test_tiles_give_what_the_whole_does(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(DTYPE, DTYPE)
    assert fused_install.install(made) is None
    loss, gradients = result(made, [256, 256], Kept.INPUT, 0.2)
    monkeypatch.setattr(tiles, "TOKENS", 96)
    found, in_tiles = result(made, [256, 256], Kept.INPUT, 0.2)
    assert abs(found - loss) / abs(loss) <= LOSS[DTYPE]
    assert difference(in_tiles, gradients) <= GRADIENTS[DTYPE]


def test_inputs_take_no_memory_of_the_device_between_the_passes() -> None:
    """However far ahead of the device the host is: what comes back has room for one more."""
    inputs = offload.HostInputs()
    rows, blocks = 16_384, 8
    x = torch.ones(rows, 4096, dtype=DTYPE, device=CUDA)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    stored = []
    for _block in range(blocks):
        stored.append(inputs.store(x))
        x = x + 1.0
    del x
    for number in range(blocks - 1, -1, -1):
        back = stored[number].take()
        stored[number].ahead()
        assert (back == 1.0 + number).all()
        del back
    peak = torch.cuda.max_memory_allocated() - before
    each = rows * 4096 * 2
    assert peak <= 3.6 * each, peak / each  # two in use, one on its way; half of one to compare


@pytest.mark.parametrize("name", ["swiglu", "swiglu_backward_", "norm", "norm_dropped", "rotate"])
def test_kernels_reach_elements_beyond_32_bits(name: str, compiled: None) -> None:
    """The last rows of a tensor that is longer than 32 bits can number are as they are alone."""
    from llama.kernels.triton_forms import FORMS
    from llama.parallel.dropout import from_row

    width, few = 4096, 64
    rows = BEYOND // width + few
    heads = (rows, 32, 128)
    x = torch.randn(few, width, device=CUDA, dtype=DTYPE)
    long = torch.zeros(rows, width, device=CUDA, dtype=DTYPE)
    long[-few:] = x
    weight = torch.rand(width, device=CUDA, dtype=DTYPE)
    seed = torch.tensor([2**40 + 77, 0], device=CUDA)
    if name == "swiglu":
        found, expected = FORMS[name](long, long), FORMS[name](x, x)
    elif name == "swiglu_backward_":
        other, own = long.clone(), x.clone()
        expected = FORMS[name](x, x.clone(), own)[1]
        found = FORMS[name](long, long, other)[1]
    elif name == "norm":
        found, expected = FORMS[name](long, weight, 1e-5), FORMS[name](x, weight, 1e-5)
    elif name == "norm_dropped":
        found = FORMS[name](long, weight, 1e-5, (seed,), 0.2)[1]
        expected = FORMS[name](x, weight, 1e-5, (from_row(seed, rows - few),), 0.2)[1]
    else:
        angles = torch.randn(rows, 1, 128, device=CUDA, dtype=DTYPE)
        found = FORMS[name](long.view(heads), angles, angles).flatten(1)
        last = angles[-few:]
        expected = FORMS[name](x.view(few, 32, 128), last, last).flatten(1)
    assert torch.equal(found[-few:], expected) and expected.abs().sum() > 0
    del long, found
    gc.collect()
    torch.cuda.empty_cache()
