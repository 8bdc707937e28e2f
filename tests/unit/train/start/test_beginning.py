"""What a run takes from the adapter that it begins with, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama.errors import UserError, raise_if
from llama.settings import LoRAOptions, TrainOptions, check_train
from llama.train.start.beginning import beginning_of
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.bad_inputs.setting import write_adapter
from tests.support.origin import about
from tests.support.tiny_runs import CONFIG

SOURCE = ModelSource("tiny", RandomReader(CONFIG), None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of an adapter of rank 4 and alpha 8 on wq and wv."""
    write_adapter(tmp_path / "adapter")
    return tmp_path


def options(run: Path | None, **lora: object) -> TrainOptions:
    return TrainOptions(
        deepspeed=Path("x"),
        init_adapter=run,
        lora=LoRAOptions(**lora),  # type: ignore[arg-type]
    )


def refusals(run: Path, **lora: object) -> list[str]:
    with pytest.raises(UserError) as raised:
        beginning_of(options(run, **lora), SOURCE)
    return raised.value.problems


def edit(run: Path, **fields: object) -> None:
    config = run / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))


def test_what_was_not_given_is_taken_and_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run, use_rslora=True, lora_dropout=0.5)
    found = beginning_of(options(run, dropout=0.1), SOURCE).options
    assert found.lora == LoRAOptions(4, 8.0, 0.1, ("wq", "wv"), scale="alpha/sqrt(r)")
    assert found.init_adapter == run / "adapter"
    said = capsys.readouterr().err
    assert "its rank 4, alpha 8.0, scale alpha/sqrt(r) are taken" in said


def test_what_is_given_and_the_same_is_right(run: Path) -> None:
    given = options(run, rank=4, alpha=8.0, targets=("wv", "wq"))
    assert beginning_of(given, SOURCE).options.lora == given.lora


def test_what_is_given_and_differs_is_refused(run: Path) -> None:
    lines = refusals(run, rank=8, alpha=8.0, targets=("wq", "wo"))
    assert [line.partition(":")[0] for line in lines] == ["--lora.rank", "--lora.targets"]
    assert f"8 is given, and --init_adapter {run / 'adapter'} has 4: leave it out" in lines[0]


def test_layers_that_differ_are_refused(run: Path) -> None:
    edit(run, alpha_pattern={"layers.1.self_attn.q_proj": 16})
    (line,) = refusals(run)
    assert "its layers differ in rank or alpha" in line


def test_another_base_is_refused_with_both_names(run: Path) -> None:
    for name, content in about(8).files().items():
        (run / "adapter" / name).write_bytes(content)
    other = ModelSource("another", RandomReader(CONFIG), None)
    with pytest.raises(UserError, match=r"was trained on tiny, and another is another model"):
        beginning_of(options(run), other)


def test_without_one_nothing_changes() -> None:
    given = options(None, rank=8)
    assert beginning_of(given, SOURCE).options is given


def test_it_must_be_there_and_an_adapter_must_train(run: Path) -> None:
    for changes, says in (
        ({"init_adapter": run / "adaptor"}, "did you mean"),
        ({"init_adapter": run, "method": "full"}, "has no effect with --method full"),
    ):
        given = TrainOptions(deepspeed=Path("x"), **changes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=says):
            raise_if(check_train(given, 1))
