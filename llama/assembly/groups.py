"""The processes of a run, divided as its options say."""

from __future__ import annotations

from llama.launch.processes import launched_world_size
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings import BenchmarkOptions, TrainOptions, VerifyOptions, base_sharers


def mesh_of(options: BenchmarkOptions | TrainOptions | VerifyOptions) -> Mesh:
    """The groups that `options` ask for, which were found right on the processes launched.
    `torch.distributed` must be up."""
    sharers = base_sharers(options, launched_world_size())
    return create_mesh(options.tensor_parallel, options.sequence_parallel, sharers)
