"""The DeepSpeed JSON made definite for the device and the ranks that this process runs with."""

from __future__ import annotations

from typing import Any

from llama.engine import bf16_supported, fp16_supported
from llama.model.config import ModelConfig
from llama.parallel.mesh import Mesh
from llama.settings import deepspeed_json
from llama.settings.deepspeed_json import Resolved


def resolve_here(
    document: dict[str, Any],
    mesh: Mesh,
    total_steps: int,
    config: ModelConfig,
    method: str = "lora",
) -> Resolved:
    """`deepspeed_json.resolve` of a checked `document` for `total_steps` optimizer steps of the
    model `config`, trained by `method`, on `mesh`, in a precision that DeepSpeed has on
    this device. Raises `UserError` as it does."""
    return deepspeed_json.resolve(
        document,
        data_parallel=mesh.readers,
        total_steps=total_steps,
        width=config.dim,
        fp16_supported=fp16_supported(),
        bf16_supported=bf16_supported(),
        method=method,
    )
