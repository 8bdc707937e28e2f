"""Products in eight bits on a CUDA device against those of a CPU, which has the same codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.assembly.model import build_model
from llama.base.eight_bits import FP8, EightBits, Int8
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.fused.install import install
from llama.kernels.compiled import KERNELS
from llama.kernels.eight_bits import quantised_rows, turned
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.gpu.test_kernels_on_gpu import CPU, CUDA, GROUPED
from tests.parity.test_packing import documents
from tests.support.eight_bits import CODES, WIDTHS, hard_rows, same_codes
from tests.support.skips import GPU, needs_gpus, skip

pytestmark = [pytest.mark.gpu, needs_gpus()]

KINDS = pytest.mark.parametrize("kind", [Int8, FP8])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(256, 512), (24, 40), (7, 33), (384, 1000)]


@pytest.fixture(autouse=True)
def needs_products(request: pytest.FixtureRequest) -> None:
    kind = request.getfixturevalue("kind") if "kind" in request.fixturenames else FP8
    if torch.cuda.get_device_capability() < kind.CAPABILITY:
        skip(GPU, f"one with products of {kind.__name__}")


PRODUCTS = (
    pytest.mark.parametrize(("kind", "side"), [(Int8, 0), (FP8, 0), (FP8, 1)]),
    pytest.mark.parametrize("dtype", DTYPES, ids=str),
    pytest.mark.parametrize("shape", SHAPES),
    pytest.mark.parametrize("count", [1, 16, 100, 1300]),
)


def every_product(test: Any) -> Any:
    """`test` of each kind, side of the scales, type, shape of the weight and number of tokens."""
    for mark in PRODUCTS:
        test = mark(test)
    return test


@every_product
def test_both_products_are_those_of_a_cpu(
    kind: type[EightBits], side: int, dtype: torch.dtype, shape: tuple[int, int], count: int
) -> None:
    products_are_those_of_a_cpu(kind, side, dtype, shape, count)


@every_product
def test_both_products_are_so_compiled(
    kind: type[EightBits],
    side: int,
    dtype: torch.dtype,
    shape: tuple[int, int],
    count: int,
    compiled: None,
) -> None:
    products_are_those_of_a_cpu(kind, side, dtype, shape, count)


def products_are_those_of_a_cpu(
    kind: type[EightBits], side: int, dtype: torch.dtype, shape: tuple[int, int], count: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    stored, x, g = (
        torch.randn(*size, generator=generator)
        for size in (shape, (count, shape[1]), (count, shape[0]))
    )
    x, g = x.to(dtype), g.to(dtype)
    there, here = (kind(kind.empty(torch.Size(shape), dtype, d, side)) for d in (CUDA, CPU))
    for weight in (there, here):
        weight.fill(stored)
    assert torch.equal(there.parameter.cpu(), here.parameter)
    # The codes are equal and the sums of int8 exact, so that some roundings to the type are left;
    # sums of float8 are kept in some 14 bits on the way, and leave the product in bf16.
    narrow = torch.bfloat16 if kind is FP8 else dtype
    limit = max(torch.finfo(narrow).eps, 1e-6)
    for found, expected in (
        (there.times(x.to(CUDA)), here.times(x)),
        (there.times_transposed(g.to(CUDA)), here.times_transposed(g)),
    ):
        assert found.dtype == dtype and found.shape == expected.shape
        apart = found.double().cpu() - expected.double()
        assert apart.norm() <= limit * expected.double().norm()


@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("width", [*WIDTHS, 14336, 28672])
def test_rows_have_the_codes_of_a_cpu(codes: torch.dtype, width: int, compiled: None) -> None:
    """Bit for bit, halves between two codes too."""
    before = torch.linspace(0.1, 9.0, width)
    for dtype in DTYPES:
        rows = hard_rows(width).to(dtype)
        for factors in (None, before):
            given = None if factors is None else factors.to(CUDA)
            found, scales = quantised_rows(rows.to(CUDA), given, codes)
            assert same_codes((found.cpu(), scales.cpu()), quantised_rows(rows, factors, codes))


@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (33, 7), (130, 300), (4096, 1024)])
def test_codes_are_turned(codes: torch.dtype, shape: tuple[int, int], compiled: None) -> None:
    held = torch.randint(-127, 128, shape, dtype=torch.int8)
    found = turned(held.to(CUDA).view(codes)).cpu().view(torch.int8)
    assert torch.equal(found, KERNELS["turned"](held))


@KINDS
def test_products_are_captured(kind: type[EightBits], compiled: None) -> None:
    """In a CUDA graph: it asks nothing of the host, and another input gives its own product."""
    weight = kind(kind.empty(torch.Size((512, 1024)), torch.bfloat16, CUDA))
    weight.fill(torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)))
    first, second = torch.randn(2, 300, 1024, device=CUDA).to(torch.bfloat16)

    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = weight.times(x)
        return y, weight.times_transposed(y, onto=x.clone())

    given = first.clone()
    both(given)  # compiled
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = both(given)
    for x in (first, second):
        given.copy_(x)
        graph.replay()
        for found, expected in zip(results, both(x), strict=True):
            assert torch.equal(found, expected)


@KINDS
def test_a_model_runs_fused(kind: type[EightBits], compiled: None) -> None:
    """Its loss is the CPU's: of bf16's rounding, and of that of the codes, which it tips over."""
    source = ModelSource("grouped", RandomReader(GROUPED), None)
    base, losses = {Int8: "int8", FP8: "fp8"}[kind], []
    for device in (CUDA, CPU):
        made = build_model(source, torch.bfloat16, device, base=base).train()
        made.tok_embeddings.weight.requires_grad_(True)
        if device is CUDA:
            assert install(made) is None
        batch = model_inputs(make_batch([documents([200, 90])], 0), device)
        loss = made(**batch)
        loss.backward()
        gradient = made.tok_embeddings.weight.grad
        assert gradient is not None and torch.isfinite(gradient).all()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
