"""What long rows take on a CUDA device: block inputs in host memory, the feed-forward in tiles, and
places of elements beyond 32 bits."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llama.fused import install as fused_install
from llama.fused import offload, tiles
from llama.model.kept import Kept
from tests.gpu.test_fused_block_on_gpu import result
from tests.gpu.test_kernels_on_gpu import CUDA, FUSED, GRADIENTS, LOSS, difference, model
from tests.support.kernel_arguments import apart
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


WIDTH, FEW, RANK, P = 4096, 64, 16, 0.2
BY_ROWS = (
    *(
        "add_norm",
        "added",
        "add_with_path_",
        "dropped",
        "gated",
        "gated_backward_",
        "hidden_each",
        "input_gradients_",
    ),
    *("norm_backward", "output_gradients", "quantised_rows", "rms_norm", "rms_norm_backward"),
    *("rotate", "swiglu", "swiglu_backward"),
)
"""Kernels of which a row's results are of that row's elements alone, apart from what they sum over
the rows."""


@pytest.mark.parametrize("name", BY_ROWS)
def test_kernels_reach_elements_beyond_32_bits(name: str, compiled: None) -> None:
    """The last rows of a tensor that is longer than 32 bits can number are as they are alone, but
    for the order of what is summed over columns."""
    from llama.kernels.triton_forms import FORMS

    rows = BEYOND // WIDTH + FEW
    few = _results(FORMS[name], name, FEW, 0)
    many = _results(FORMS[name], name, rows, rows - FEW)
    last = [found[-FEW:].double() for found in many]
    del many
    for found, expected in zip(last, few, strict=True):
        assert expected.double().norm() > 0
        assert apart(found, expected) <= FUSED[DTYPE]
    gc.collect()
    torch.cuda.empty_cache()


def _results(form: Callable[..., Any], name: str, rows: int, before: int) -> list[torch.Tensor]:
    """What `form` gives by rows, of `before` rows of zeros and the same others whatever `rows`."""
    generator = torch.Generator().manual_seed(0)

    def by_rows(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
        drawn = torch.randn(rows - before, *shape, generator=generator).to(CUDA, dtype)
        if not before:
            return drawn
        long = torch.zeros(rows, *shape, device=CUDA, dtype=dtype)
        long[before:] = drawn
        return long

    def factor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(CUDA, DTYPE)

    weight, a, b = factor(WIDTH), factor(RANK, WIDTH), factor(WIDTH, RANK)
    # The mask of the last rows, by either way to them:
    seed = torch.tensor([2**40 + 77, 0 if before else BEYOND // WIDTH], device=CUDA)
    x, part, scale = by_rows(WIDTH), by_rows(RANK), by_rows(1, dtype=torch.float32)
    empty = torch.empty_like
    paths, scales = ((part, b), (part, b)), (0.5, 2.0)
    calls: dict[str, Callable[[], Any]] = {
        "add_norm": lambda: form(x, (x, x), weight, 1e-5, (empty(x), empty(x), empty(scale))),
        "added": lambda: form(x, (x, x), empty(x)),
        "add_with_path_": lambda: form(x.clone(), x, (part, b), 0.5),
        "dropped": lambda: form(x, seed, P),
        "gated": lambda: form(x, x, paths, scales, (a,), (seed,), P),
        "gated_backward_": lambda: form(
            x, x.clone(), x.clone(), paths, scales, (part, a), (seed,), P
        )[:2],
        "hidden_each": lambda: form(x, (a,), (seed,), P),
        "input_gradients_": lambda: form(x, (x.clone(),), (), (part,), (a,), (seed,), P)[:1],
        "norm_backward": lambda: form(x, (x, x), x, weight, 1e-5, empty(x)),
        "output_gradients": lambda: form((x,), (part,), (b,), (0.5,))[0],
        "quantised_rows": lambda: form(x, None, torch.int8),
        "rms_norm": lambda: form(x, weight, 1e-5),
        "rms_norm_backward": lambda: form(x, x, weight, scale),
        "rotate": lambda: form(x.view(rows, 32, 128), by_rows(1, 128), by_rows(1, 128)),
        "swiglu": lambda: form(x, x),
        "swiglu_backward": lambda: form(x, x, x),
    }
    found = calls[name]()
    return list(found) if isinstance(found, tuple) else [found]
