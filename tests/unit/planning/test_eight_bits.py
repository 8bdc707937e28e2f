"""What a product in eight bits takes on a GPU, by the plan."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llama.kernels import eight_bits
from llama.planning.storages import LiveStorages
from llama.planning.trace import _ways
from tests.unit.planning.test_memory import JOB

T, N, K = 512, 256, 1024
CODES, SCALES = T * K, {torch.int8: 4 * T * K // 128, torch.float8_e4m3fn: 4 * T}
OUT = 2 * T * N


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("by_rows", [True, False], ids=["as held", "turned"])
def test_a_product_takes_codes_scales_and_one_matrix_that_is_turned(
    kind: torch.dtype, by_rows: bool
) -> None:
    """Nothing is written in float32 but scales; where an output has none, ones stand for it."""
    storages = LiveStorages()
    with ExitStack() as stack:
        for each in (*_ways(replace(JOB, fused=True), storages), FakeTensorMode(), storages):
            stack.enter_context(each)
        x = torch.empty(T, K, dtype=torch.bfloat16)
        codes = torch.empty((N, K) if by_rows else (K, N), dtype=kind)
        before, after = torch.empty(K), torch.empty(N)
        for factors in (after, None):
            storages.forget_peak()
            held = storages.total
            y = eight_bits.times(x, codes if by_rows else codes.t(), before, factors)
            expected = CODES + SCALES[kind] + OUT + (0 if by_rows else N * K)
            if factors is None and kind != torch.int8:
                expected += 4 * N
            assert storages.peak - held == expected
            assert storages.total - held == OUT and y.dtype == x.dtype
            del y
