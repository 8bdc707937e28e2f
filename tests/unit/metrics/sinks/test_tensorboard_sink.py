"""What TensorBoard reads of a run, one that was killed and gone on with too."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from llama.metrics.sinks.sink import Watched
from llama.metrics.sinks.tensorboard_sink import TensorBoardSink, hyperparameters
from llama.pages.sample import Sample

CONFIG = {
    "options": {"model": "m", "lora": {"rank": 8, "targets": ["wq", "wv"]}, "pack": True},
    "deepspeed": {"optimizer": {"params": {"lr": 1e-3}}},
    "precision": "bf16",
}
TRAIN, EVAL = {"train/loss": 2.0}, {"eval/loss": 3.0}


def read(folder: Path, run: str) -> EventAccumulator:
    sizes = dict.fromkeys(("scalars", "histograms", "tensors"), 0)
    board = EventAccumulator(str(folder / "tensorboard" / run), sizes)
    return board.Reload()


def steps(board: EventAccumulator, name: str) -> list[int]:
    return [event.step for event in board.Scalars(name)]


def status(board: EventAccumulator) -> int:
    content = board.PluginTagToContent("hparams")[metadata.SESSION_END_INFO_TAG]
    return metadata.parse_session_end_info_plugin_data(content).status


def tell(sink: TensorBoardSink, last: int, until: int) -> None:
    """All of a run as far as `until`: an evaluation and norms every second step, told again from
    its beginning up to the step `last`, as a reporter does."""
    for step in range(until + 1):
        if step:
            sink.scalars(step, TRAIN)
        if step % 2 == 0:
            sink.scalars(step, EVAL)
            if step >= last:
                sink.histogram(step, "adapter/norm_A", torch.tensor([1.0, 2.0]))


def test_both_losses_are_of_one_chart_which_comes_first(tmp_path: Path) -> None:
    sink = TensorBoardSink(Watched(tmp_path), CONFIG)
    tell(sink, 0, 4)
    sink.end("finished", {})
    train, held_out = read(tmp_path, "train"), read(tmp_path, "eval")
    names = train.Tags()["scalars"] + train.Tags()["histograms"]
    assert min(names) == "Loss" and held_out.Tags()["scalars"] == ["Loss"]
    assert [event.value for event in train.Scalars("Loss")] == [2.0] * 4
    assert [(e.step, e.value) for e in held_out.Scalars("Loss")] == [(0, 3.0), (2, 3.0), (4, 3.0)]
    assert steps(train, "eval/loss") == [0, 2, 4] and steps(train, "train/loss") == [1, 2, 3, 4]


def test_a_run_that_goes_on_has_every_point_once(tmp_path: Path) -> None:
    """Killed at step 7, its evaluation of step 6 done; gone on with from step 4, where that of step
    4 is made again; then the same once more."""
    tell(TensorBoardSink(Watched(tmp_path), CONFIG), 0, 7)
    for from_step in (4, 6):
        sink = TensorBoardSink(Watched(tmp_path, from_step), CONFIG)
        tell(sink, from_step, 8)
        sink.samples(8, [Sample("Held out", "p", "q", "r")])
        sink.end("finished", {})
    train, held_out = read(tmp_path, "train"), read(tmp_path, "eval")
    assert steps(train, "train/loss") == steps(train, "Loss") == [*range(1, 9)]
    assert steps(held_out, "Loss") == steps(train, "eval/loss") == [0, 2, 4, 6, 8]
    assert [event.step for event in train.Histograms("adapter/norm_A")] == [0, 2, 4, 6, 8]
    assert [event.step for event in train.Tensors("samples/text_summary")] == [8]


def test_a_run_is_one_row_of_hyperparameters_and_its_newest_end_counts(tmp_path: Path) -> None:
    for end, expected in (("failed", 2), ("interrupted", 0), ("finished", 1)):
        sink = TensorBoardSink(Watched(tmp_path), CONFIG)
        tell(sink, 0, 1)
        sink.end(end, {})
        board = read(tmp_path, "train")
        assert status(board) == expected
        content = board.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
        told = metadata.parse_session_start_info_plugin_data(content).hparams
        assert told["lora.rank"].number_value == 8 and told["lr"].number_value == 1e-3
    assert not read(tmp_path, "eval").summary_metadata.get(metadata.SESSION_START_INFO_TAG)


def test_a_place_that_a_run_had_not_gets_its_beginning_too(tmp_path: Path) -> None:
    sink = TensorBoardSink(Watched(tmp_path, 4), CONFIG)
    tell(sink, 4, 5)
    sink.end("finished", {})
    assert steps(read(tmp_path, "train"), "train/loss") == [1, 2, 3, 4, 5]


def test_settings_are_columns_by_short_names() -> None:
    expected: dict[str, Any] = {
        "model": "m",
        "lora.rank": 8,
        "lora.targets": "wq,wv",
        "pack": "true",
        "lr": 1e-3,
        "precision": "bf16",
    }
    assert hyperparameters(CONFIG) == expected


def test_a_shell_takes_what_is_to_be_typed(tmp_path: Path) -> None:
    sink = TensorBoardSink(Watched(tmp_path / "my run"), CONFIG)
    folder = tmp_path / "my run" / "tensorboard"
    words = ["tensorboard", "--logdir", str(folder), "--host", "localhost"]
    assert shlex.split(sink.how_to_look) == words
