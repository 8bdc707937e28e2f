"""The configuration that DeepSpeed is given."""

from __future__ import annotations

from typing import Any

from llama.parallel.mesh import Mesh
from llama.settings.deepspeed_json import Resolved


def configuration(resolved: Resolved, mesh: Mesh) -> dict[str, Any]:
    """`resolved.engine` as DeepSpeed counts: it holds `train_batch_size` against the ranks that it
    sums over, and knows of none that share the tokens of a row."""
    config = dict(resolved.engine)
    config["train_batch_size"] *= mesh.sequence_parallel.size
    return config
