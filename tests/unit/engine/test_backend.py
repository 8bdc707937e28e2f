"""What DeepSpeed is asked of the device, and what a start is spared."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llama.engine import backend
from tests.support.model_files import ROOT


def test_no_cpu_trains_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not where DeepSpeed would: it asks for the CPU's instructions."""
    accelerator = backend.get_accelerator()
    if accelerator.device_name() == "cpu":
        monkeypatch.setattr(accelerator, "is_fp16_supported", lambda: True)
        assert not backend.fp16_supported()


def test_torchs_compiler_does_not_load_with_the_processes() -> None:
    """ZeRO imports DeepSpeed's Muon, which would load all of it: a second of every start."""
    code = (
        "import sys; from llama.engine import start_processes; start_processes();"
        "from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam;"
        "from deepspeed.runtime import compiler;"
        "print(sorted({'torch._inductor.compile_fx', 'torch._dynamo'} & set(sys.modules)),"
        "compiler.compile.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "deepspeed.runtime.compiler"]
