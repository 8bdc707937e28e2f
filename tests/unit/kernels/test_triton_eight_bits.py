"""The Triton kernels around products in eight bits where it is tight, by Triton's interpreter (see
test_triton_forms.py): each check prints its name once it has held."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.model_files import ROOT
from tests.support.skips import needs_triton

BODY = """
import torch
from llama.kernels import triton_eight_bits as forms
from llama.kernels.eight_bits import grouped_product, quantised_rows, turned
from tests.support import interpreted
from tests.support.eight_bits import CODES, WIDTHS, hard_rows, same_codes

for width in WIDTHS:
    before = torch.linspace(0.1, 9.0, width)
    for kind in CODES:
        for x in (hard_rows(width), hard_rows(width).to(torch.bfloat16)):
            for factors in (None, before):
                found = forms.quantised_rows(x, factors, kind)
                assert same_codes(found, quantised_rows(x, factors, kind)), (width, kind)
        for alone, among in zip(*(forms.quantised_rows(x[:n], None, kind) for n in (1, 8))):
            assert torch.equal(alone.view(torch.uint8), among[:1].view(torch.uint8))
print("rows")

for shape in ((1, 1), (33, 7), (16, 256), (130, 300)):
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    for kind in CODES:
        found = forms.turned(codes.view(kind))
        assert torch.equal(found.view(torch.int8), turned(codes.view(kind)).view(torch.int8))
        assert all(size % 16 == 0 for size in found.shape) and found.dtype == kind
print("turned")

# One token, few and many; parts of groups and of tiles; more tiles of tokens than go together.
for tokens, width, outputs in ((1, 300, 40), (17, 128, 130), (65, 700, 129), (1160, 130, 150)):
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(tokens, width, generator=generator)
    weight = torch.randint(-127, 128, (outputs, width), generator=generator, dtype=torch.int8)
    after = torch.linspace(0.1, 2.0, outputs)
    codes, scales = quantised_rows(x, None, torch.int8)
    wide = codes.unflatten(1, (-1, 128)).double() * scales.double().unsqueeze(2)
    expected = wide.flatten(1)[:, :width] @ weight.double().t()
    for factors in (None, after):
        right = expected if factors is None else expected * factors.double()
        found = forms.grouped_product(codes, scales, weight, factors, torch.float32)
        assert found.shape == right.shape
        assert (found.double() - right).norm() < 1e-6 * right.norm(), (tokens, width, outputs)
    half = forms.grouped_product(codes, scales, weight, after, torch.bfloat16)
    assert (half.double() - right).norm() < 2**-7 * right.norm()
print("product")

codes, scales = forms.quantised_rows(hard_rows(300), None, torch.int8)
weight = torch.randint(-127, 128, (40, 300), dtype=torch.int8)
y = forms.grouped_product(codes, scales, weight, None, torch.float32)
finite = y.isfinite()
assert finite[:5].all() and finite[7].all() and not finite[5:7].any()
print("not finite")
"""


@needs_triton()
def test_the_forms_hold_where_it_is_tight() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BODY],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["rows", "turned", "product", "not finite"]
