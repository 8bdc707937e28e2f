"""How the work of a run is cut into steps, once the number of ranks is known."""

from __future__ import annotations

from dataclasses import dataclass

from llama.assembly.device_settings import resolve_here
from llama.data.batches import Epochs
from llama.data.shares import rows_of_epoch
from llama.parallel.mesh import Mesh
from llama.settings import deepspeed_json
from llama.settings.deepspeed_json import Resolved
from llama.train.start.inputs import Inputs


@dataclass(frozen=True)
class Schedule:
    """How the work is cut into steps, on this rank."""

    epochs: Epochs
    resolved: Resolved
    total_steps: int


def schedule(inputs: Inputs, mesh: Mesh) -> Schedule:
    """Resolve the DeepSpeed JSON for the length of this run on this mesh."""
    options = inputs.options
    micro_batch, accumulation = deepspeed_json.batch_sizes(inputs.deepspeed, mesh.readers)
    epochs = Epochs(
        inputs.training.packed,
        micro_batch,
        accumulation,
        mesh.reader,
        mesh.readers,
        options.seed,
        inputs.training.shares,
    )
    total_steps = options.epochs * epochs.windows_per_epoch
    if options.max_steps is not None:
        total_steps = min(total_steps, options.max_steps)
    resolved = resolve_here(
        inputs.deepspeed, mesh, total_steps, inputs.source.config, options.method
    )
    rows, batch = (
        rows_of_epoch(inputs.training.shares),
        micro_batch * accumulation * mesh.readers,
    )
    if rows < batch:
        resolved.notes.append(
            f"the data fills {rows} of the {batch} rows of a batch: every step takes all of it"
        )
    return Schedule(epochs, resolved, total_steps)
