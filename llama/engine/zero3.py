"""Loading a model under ZeRO-3: each parameter is cut up over the data-parallel ranks as soon as it
is there, so that no rank ever holds more than one whole parameter beyond its own share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from torch import nn

from llama.engine.configuration import configuration
from llama.parallel import sharded
from llama.parallel.mesh import DeepSpeedTopology, Mesh
from llama.settings.deepspeed_json import Resolved
from llama.weights.load import Placement


class ZeRO3Placement(Placement):
    """The placement of `load_weights` for ZeRO-3. One rank of each data-parallel group reads and
    the others receive; what is read from disk is then read once, however many ranks there are."""

    def __init__(self, resolved: Resolved, mesh: Mesh) -> None:
        self.reads = mesh.data_parallel_rank == 0
        self._options: dict[str, Any] = {
            "data_parallel_group": mesh.data_parallel_group,
            "config_dict_or_path": configuration(resolved, mesh),
            "mpu": DeepSpeedTopology(mesh),
        }
        self._first: Any = None

    def place(self, name: str, parameter: nn.Parameter, part: nn.Parameter) -> None:
        """Send `parameter` from the reading rank to the others, and keep this rank's share."""
        if self._first is None:
            holder = nn.Module()
            holder.register_parameter("parameter", parameter)
            deepspeed.zero.Init(module=holder, **self._options)
            self._first = parameter
        else:  # the same, without reading the configuration once more
            self._first.convert_to_zero_parameters([parameter])


def gathered(parameter: Any) -> AbstractContextManager[Any]:
    """Within it `parameter` is whole, to be read. Under ZeRO-3, and of a sharded base, every rank
    of the data-parallel group must enter it."""
    if sharded.is_sharded(parameter):
        return sharded.whole(parameter)
    return GatheredParameters([parameter]) if hasattr(parameter, "ds_tensor") else nullcontext()
