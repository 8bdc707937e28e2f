"""TensorBoard's files in the run's folder. The one importer of TensorBoard.

    tensorboard/train   every number, the hyper-parameters, the samples
    tensorboard/eval    the held-out loss once more, by the name of the training's

TensorBoard draws numbers of one name in one chart, a line for each folder: so the chart `Loss` has
both losses. It sorts charts by name, capitals first, so that one is on top.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from llama.files.run_folder import TENSORBOARD
from llama.metrics.names import EVAL_LOSS, TRAIN_LOSS
from llama.metrics.sinks.sink import Sink, Status, Watched
from llama.metrics.sinks.tables import markdown
from llama.pages.sample import Sample

BOTH_LOSSES = "Loss"
_HPARAMS = {
    "options": "model data template method lora.rank lora.alpha lora.dropout lora.targets "
    "lora.kind lora.scale lora.start lora.b_lr_ratio epochs max_steps seq_len pack seed",
    "deepspeed": "optimizer.params.lr optimizer.params.weight_decay scheduler.type "
    "train_batch_size gradient_clipping zero_optimization.stage",
    "": "precision steps trainable_parameters",
}
"""Settings that are columns of the tab HParams, by the section of run.json that they are in."""
_OPENING, _CLOSING = ".opening", ".closing"
"""Endings of the files that hold what a run has but once. TensorBoard takes the first of each that
it finds: a run that is gone on with writes them anew."""


class TensorBoardSink(Sink):
    """Raises `OSError` where the disk is full."""

    OF_THE_RUN = True

    def __init__(self, run: Watched, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only one rank does

        self._folder = run.folder / TENSORBOARD
        self._samples: tuple[int, list[Sample]] = 0, []
        has_begun = any(self._folder.glob("train/*"))
        self._first = run.step if has_begun else 0
        purge_step = self._first if has_begun else None  # what is there of it and later goes
        for once in (_OPENING, _CLOSING):
            for old in self._folder.glob(f"train/*{once}"):
                old.unlink()
        # before the file of the numbers: the plain reader goes through them in order of time
        self._once(_OPENING, (_session_start(config), -1))  # of no step: no purge takes it
        self._train = SummaryWriter(str(self._folder / "train"), purge_step=purge_step)
        self._eval = SummaryWriter(str(self._folder / "eval"), purge_step=purge_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step < self._first:
            return
        for name, value in values.items():
            self._train.add_scalar(name, value, step)
            if name == TRAIN_LOSS:
                self._train.add_scalar(BOTH_LOSSES, value, step)
            elif name == EVAL_LOSS:
                self._eval.add_scalar(BOTH_LOSSES, value, step)

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        self._train.add_histogram(name, values, step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        self._samples = step, list(samples)

    def end(self, status: Status, summary: Mapping[str, Any]) -> None:
        self._train.close()
        self._eval.close()
        step, samples = self._samples
        closing = [(_session_end(status), step)]
        if samples:
            from torch.utils.tensorboard.summary import text

            closing.append((text("samples", markdown(samples)), step))
        self._once(_CLOSING, *closing)

    @property
    def how_to_look(self) -> str:
        return shlex.join(["tensorboard", "--logdir", str(self._folder), "--host", "localhost"])

    def _once(self, ending: str, *summaries: tuple[Any, int]) -> None:
        """A file of its own, whole when this returns."""
        from torch.utils.tensorboard import FileWriter

        writer = FileWriter(str(self._folder / "train"), filename_suffix=ending)
        for summary, step in summaries:
            writer.add_summary(summary, step)
        writer.close()


def hyperparameters(config: Mapping[str, Any]) -> dict[str, str | float]:
    """Those of `config`, by the last part of a name that none other has."""
    found: dict[str, str | float] = {}
    for section, names in _HPARAMS.items():
        for name in names.split():
            value = _inside(config, [*section.split("."), *name.split(".")])
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[name.removeprefix("optimizer.params.")] = value
            elif value is not None:
                found[name.removeprefix("optimizer.params.")] = _in_words(value)
    return found


def _inside(config: Any, names: Sequence[str]) -> Any:
    for name in filter(None, names):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _in_words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _session_start(config: Mapping[str, Any]) -> Any:
    """What makes this run a row of the tab HParams. Nothing says which columns there are: then
    TensorBoard takes every setting and number of the runs that it shows, and those settings first
    in which they differ."""
    from torch.utils.tensorboard.summary import hparams

    return hparams(hyperparameters(config), {})[1]


def _session_end(status: Status) -> Any:
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    # their classes are made as they are imported, where no type checker sees them
    api, plugin, proto = cast(Any, api_pb2), cast(Any, plugin_data_pb2), cast(Any, summary_pb2)
    code = {"finished": api.STATUS_SUCCESS, "failed": api.STATUS_FAILURE}
    end = plugin.SessionEndInfo(
        status=code.get(status, api.STATUS_UNKNOWN), end_time_secs=time.time()
    )
    told = metadata.create_summary_metadata(plugin.HParamsPluginData(session_end_info=end))
    value = proto.Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=told, tensor=metadata.NULL_TENSOR
    )
    return proto.Summary(value=[value])
