"""The Triton kernels on a CPU, by Triton's interpreter, where Triton is installed; on a GPU:
tests/gpu/test_triton_on_gpu.py. The interpreter is chosen when Triton is imported, so this is a
process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.closeness import sums_of
from tests.support.model_files import ROOT
from tests.support.skips import needs_triton

BODY = """
import json, torch
from triton.runtime import interpreter
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):  # its own takes an array of one number, which numpy 2.4 refuses
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
interpreter._patch_lang_tensor = patched
from llama.fused import kernels
from llama.kernels import eight_bits, elementwise, four_bits, path_gradient_forms
from llama.kernels.compiled import KERNELS
from llama.kernels.triton_forms import FORMS
from llama.model import loss
from tests.support import interpreted
from tests.support.kernel_arguments import apart, calls, own
assert set(FORMS) == set(KERNELS)
found = {}
for name, args in calls(torch.float32, torch.device("cpu")):
    difference = apart(FORMS[name](*own(args)), KERNELS[name](*own(args)))
    found[name] = max(difference, found.get(name, 0.0))
# More rows than a tile has, and the wide tiles of large gradients:
for programs in (path_gradient_forms.OUTPUT.programs, 0):
    path_gradient_forms.OUTPUT = path_gradient_forms.OUTPUT._replace(programs=programs)
    for name, args in calls(torch.float32, torch.device("cpu"), 75, 600):
        if name in ("output_gradients", "input_gradients_"):
            difference = apart(FORMS[name](*own(args)), KERNELS[name](*own(args)))
            found[name] = max(difference, found[name])
x, wide = torch.ones(3, 200), torch.ones(100, 200)
assert FORMS["hidden_each"](x, (wide,), (), 0.0) is NotImplemented
assert FORMS["output_gradients"]((x,), (x[:, :100],), (wide.t(),), (1.0,)) is NotImplemented
assert FORMS["gated"](x, x, ((), ()), (1.0, 1.0), (wide,), (), 0.0) is NotImplemented
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.long
@needs_triton()
def test_the_interpreter_gives_what_the_functions_do() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BODY],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    limit = sums_of(96 + 5000)
    assert found and max(found.values()) <= limit, found
