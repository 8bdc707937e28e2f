"""MLflow: a server, or without MLFLOW_TRACKING_URI the folder `mlruns` here.

The one importer of mlflow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch

from llama.files.json_text import json_text
from llama.metrics.sinks.sink import COLUMNS, PROJECT, Sink, Status, Watched
from llama.pages.sample import Sample

_ENDS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_LOCAL = "mlruns"
_SAMPLES = "samples.json"
_PARAMS = 100
"""Of settings, in one call: the most that a server takes."""
_LENGTH = 500
"""Characters of a setting's value that every server takes."""


class MLflowSink(Sink):
    """A run of the experiment MLFLOW_EXPERIMENT_NAME, or of `PROJECT`."""

    def __init__(self, run: Watched, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or _LOCAL
        self._client = MlflowClient(self._uri)
        self._last: dict[str, int] = {}
        found = run.ids.get("mlflow")
        if found is None:
            found = self._client.create_run(self._experiment(), run_name=run.name).info.run_id
            run.ids.keep("mlflow", found)
            params = [Param(name, value[:_LENGTH]) for name, value in _flat(config)]
            for first in range(0, len(params), _PARAMS):
                self._client.log_batch(found, params=params[first : first + _PARAMS])
        else:
            self._client.update_run(found, status="RUNNING")
            for name in self._client.get_run(found).data.metrics:
                history = self._client.get_metric_history(found, name)
                self._last[name] = max(metric.step for metric in history)
        self._id = found

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """It would draw two points where a step is told twice."""
        now = int(time.time() * 1000)
        new = [
            self._metric(name, value, now, step)
            for name, value in values.items()
            if step > self._last.get(name, -1)
        ]
        if new:
            self._client.log_batch(self._id, metrics=new)

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        """It knows none: the ends and the middle."""
        three = {"min": values.min(), "median": values.median(), "max": values.max()}
        self.scalars(step, {f"{name}_{part}": float(value) for part, value in three.items()})

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        rows = {"columns": list(COLUMNS), "data": [list(astuple(sample)) for sample in samples]}
        self._client.log_dict(self._id, rows, _SAMPLES)
        tables = json_text([{"path": _SAMPLES, "type": "table"}])
        self._client.set_tag(self._id, "mlflow.loggedArtifacts", tables)  # its page shows those

    def end(self, status: Status, summary: Mapping[str, Any]) -> None:
        self._client.log_dict(self._id, dict(summary), "summary.json")
        self._client.set_tag(self._id, "status", status)
        self._client.set_terminated(self._id, _ENDS[status])

    @property
    def how_to_look(self) -> str:
        if self._uri == _LOCAL:
            return f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {_LOCAL}"
        return self._uri


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
