"""The configuration that DeepSpeed is given."""

from __future__ import annotations

from typing import Any

import torch

from llama.parallel.mesh import Mesh
from llama.settings.deepspeed_json import Resolved


def configuration(resolved: Resolved, mesh: Mesh) -> dict[str, Any]:
    """`resolved.engine` as DeepSpeed counts: it holds `train_batch_size` against the ranks that it
    sums over, and knows of none that share the tokens of a row."""
    config = dict(resolved.engine)
    config["train_batch_size"] *= mesh.sequence_parallel.size
    return config


def with_fused_adam(config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """`config` with torch's Adam in its one kernel for all tensors where it steps on CUDA, unless
    the file says otherwise: it takes no memory of its own, and a host starts it at once."""
    offload = config["zero_optimization"].get("offload_optimizer", {})
    params = config["optimizer"]["params"]
    there = device.type == "cuda" and offload.get("device", "none") == "none"
    if not (there and params.get("torch_adam")) or params.get("foreach"):
        return config
    optimizer = config["optimizer"] | {"params": {"fused": True} | params}
    return config | {"optimizer": optimizer}
