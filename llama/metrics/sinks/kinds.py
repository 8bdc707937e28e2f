"""The places that --report_to names, by their names there. `llama/settings/report_to.py` says which
package each needs; it is imported where a run is told of there, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable

from llama.metrics.sinks.mlflow_sink import MLflowSink
from llama.metrics.sinks.sink import Sink
from llama.metrics.sinks.tensorboard_sink import TensorBoardSink
from llama.metrics.sinks.trackio_sink import TrackioSink
from llama.metrics.sinks.wandb_sink import WandbSink

KINDS: dict[str, type[Sink]] = {
    "tensorboard": TensorBoardSink,
    "trackio": TrackioSink,
    "wandb": WandbSink,
    "mlflow": MLflowSink,
}


def unready(names: Iterable[str]) -> list[str]:
    """Why a run could not be told of there, one line each; `none` has no reasons."""
    return [problem for name in names if name in KINDS for problem in KINDS[name].problems()]
