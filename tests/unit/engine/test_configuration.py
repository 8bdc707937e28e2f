"""What DeepSpeed is given beyond the file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama.engine.configuration import with_fused_adam


@pytest.mark.parametrize(
    ("params", "zero", "device", "expected"),
    [
        ({"torch_adam": True}, {}, "cuda", True),
        ({"torch_adam": True}, {"offload_optimizer": {"device": "none"}}, "cuda", True),
        ({"torch_adam": True}, {"offload_optimizer": {"device": "cpu"}}, "cuda", None),
        ({"torch_adam": True}, {}, "cpu", None),
        ({"torch_adam": False}, {}, "cuda", None),
        ({"torch_adam": True, "foreach": True}, {}, "cuda", None),
        ({"torch_adam": True, "fused": False}, {}, "cuda", False),
    ],
)
def test_adam_is_one_kernel_on_cuda_unless_the_file_says_otherwise(
    params: dict[str, Any], zero: dict[str, Any], device: str, expected: bool | None
) -> None:
    config = {"optimizer": {"type": "AdamW", "params": params}, "zero_optimization": zero}
    before = dict(params)
    found = with_fused_adam(config, torch.device(device))
    assert found["optimizer"]["params"].get("fused") == expected
    assert params == before and found["optimizer"]["type"] == "AdamW"
