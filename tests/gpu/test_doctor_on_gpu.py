"""`doctor` where there are GPUs: nccl over all of them."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.skips import needs_gpus
from tests.support.tiny_runs import launched

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    needs_gpus(),
]


def test_every_gpu_of_this_machine() -> None:
    done = launched("python", "doctor.py", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["all_reduce"]["backend"] == "nccl"
    assert document["all_reduce"]["ranks"] == torch.cuda.device_count()
    found = {row["check"]: row["found"] for row in document["checks"]}
    assert torch.cuda.get_device_name(0) in found["devices"]
