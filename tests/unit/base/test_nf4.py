"""NF4 against bitsandbytes' own, and against the format written out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bitsandbytes
import bitsandbytes.functional
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llama.base import packed
from llama.base.nf4 import NF4, _Parts
from llama.kernels.four_bit_codes import VALUES, values_on
from llama.kernels.four_bits import from_four_bits
from tests.support.model_files import ROOT

CPU = torch.device("cpu")
SHAPES = [(128, 256), (96, 64), (320, 192)]
ODD_SHAPES = [(24, 16), (7, 33), (1, 1), (130, 65)]


def weights(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of several sizes, so that scales of blocks differ."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    return (values * torch.linspace(0.01, 2.0, shape[0]).unsqueeze(1)).to(dtype)


def held(stored: torch.Tensor, dtype: torch.dtype = torch.float32) -> NF4:
    weight = NF4(NF4.empty(stored.shape, dtype, CPU))
    weight.fill(stored)
    return weight


def theirs(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What bitsandbytes makes of it: by its own functions, in a matrix of its own making."""
    codes, state = bitsandbytes.functional.quantize_4bit(
        stored, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    state.dtype = dtype
    return bitsandbytes.functional.dequantize_4bit(codes, state)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_weights_are_those_of_bitsandbytes_to_the_last_bit(
    shape: tuple[int, int], stored: torch.dtype, dtype: torch.dtype
) -> None:
    matrix = weights(shape, stored)
    assert torch.equal(held(matrix)._as(dtype), theirs(matrix, dtype))


@pytest.mark.parametrize("shape", [*SHAPES, *ODD_SHAPES])
def test_the_bytes_are_what_the_format_says(shape: tuple[int, int]) -> None:
    """Each weight is one of 16 values times its block's absmax, which is one of 256 values times
    its group's scale, plus their mean."""
    matrix = weights(shape)
    weight = held(matrix)
    parts = _Parts(weight.parameter.detach(), matrix.numel())
    levels = bitsandbytes.functional.create_dynamic_map()
    assert torch.equal(parts.levels, levels)
    found = from_four_bits(*parts.all(), values_on(CPU), torch.float32)
    plain = found.view(-1)[: matrix.numel()].view(shape)
    # One rounding may fall otherwise where a kernel multiplies and adds at once.
    torch.testing.assert_close(weight.dense(), plain, rtol=1e-6, atol=1e-7)
    # The gaps between values are up to 0.304 of a block's absmax; what rounding the absmax adds to
    # that is less than a tenth of it.
    error = (plain - matrix).abs().max(dim=1).values
    assert (error <= 0.16 * matrix.abs().max() + 1e-6).all()
    assert (plain - matrix).norm() < 0.12 * matrix.norm()


def test_the_values_are_those_of_bitsandbytes() -> None:
    assert VALUES == tuple(bitsandbytes.functional.get_4bit_type("nf4", "cpu").tolist())


def test_a_product_is_that_of_their_linear_layer() -> None:
    matrix = weights((128, 256))
    layer = bitsandbytes.nn.Linear4bit(
        256,
        128,
        bias=False,
        compute_dtype=torch.float32,
        quant_type="nf4",
        compress_statistics=True,
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        matrix, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
    ).to("cpu")
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(1))
    # Sums of 256 products in float32, in another order.
    torch.testing.assert_close(held(matrix).times(x), layer(x), rtol=1e-5, atol=1e-5)


def test_what_it_takes() -> None:
    """4 bits, 8 for each 64 weights, 32 for each 64 x 256; and a kilobyte for the matrix."""
    shape = torch.Size((1024, 1024))
    bits = 8 * NF4(NF4.empty(shape, torch.bfloat16, CPU)).nbytes - 8 * 4 * 257
    assert bits / shape.numel() == 4 + 8 / 64 + 32 / (64 * 256)


def test_pieces_make_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = weights((130, 65))
    whole = held(matrix).parameter
    monkeypatch.setattr(packed, "AT_ONCE", 1024)
    assert torch.equal(held(matrix).parameter, whole)


def test_values_too_large_for_half_precision_show() -> None:
    matrix = weights((96, 64))
    matrix[3, 5] = 1e6
    assert torch.isfinite(held(matrix)._as(torch.bfloat16)).all()
    assert not torch.isfinite(held(matrix)._as(torch.float16)).all()


def test_a_matrix_without_values_can_be_planned_with() -> None:
    with FakeTensorMode():
        weight = NF4(NF4.empty(torch.Size((24, 16)), torch.bfloat16, CPU))
        y = weight.times(torch.empty(3, 16, dtype=torch.bfloat16))
        assert y.shape == (3, 24) and weight.dense().shape == (24, 16)


STAND_IN = """
raise SystemExit("bitsandbytes looked for a kernel in a hub")
"""
USE = """
import sys, torch
from llama.base.nf4 import NF4
weight = NF4(NF4.empty(torch.Size((8, 64)), torch.float32, torch.device("cpu")))
weight.fill(torch.ones(8, 64))
assert "kernels" not in sys.modules
import kernels
"""


def test_its_import_fetches_no_code(tmp_path: Path) -> None:
    """`kernels` is the package by which it would; which CPUs it asks that for is its own affair."""
    (tmp_path / "kernels.py").write_text(STAND_IN)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{USE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    # It is there again for whoever imports it afterwards, and then does say so.
    assert done.returncode == 1 and done.stderr.strip() == STAND_IN.split('"')[1], done.stderr
