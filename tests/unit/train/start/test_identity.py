"""Which options decide what a run computes: those that are marked, no second list beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama.data.types import Example
from llama.settings import LoRAOptions, TrainOptions
from llama.settings.options.marks import BY_CONTENT, BY_VALUE, marked
from llama.train.start import identity as module
from llama.train.start.facts import examples_digest, leaves
from llama.train.start.identity import CONTENTS, differences, identity

OPTIONS = TrainOptions(deepspeed=Path("ds.json"))
OTHER: dict[str, Any] = {
    "template": "chatml",
    "seq_len": 77,
    "pack": False,
    "seed": 5,
    "eval_split": 0.25,
    "lora.rank": 3,
    "lora.alpha": 5.0,
    "lora.dropout": 0.5,
    "lora.targets": ("w1",),
    "lora.kind": "another",
    "lora.scale": "alpha/sqrt(r)",
    "lora.start": "pissa",
    "lora.b_lr_ratio": 16.0,
    "method": "full",
    "base": "nf4",
    "columns": (("output", "answer"),),
}


def of(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(module, "CONTENTS", {})
    row = [Example([1, 2], [-100, 2], 1)]
    inputs: Any = SimpleNamespace(
        options=options, training=SimpleNamespace(packed=[row]), deepspeed={"optimizer": {"a": 1}}
    )
    resolved = SimpleNamespace(precision="fp32", micro_batch=1, accumulation=2)
    schedule: Any = SimpleNamespace(resolved=resolved)
    return identity(inputs, schedule, SimpleNamespace(readers=2))  # type: ignore[arg-type]


def test_every_marked_option_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = dict(marked(OPTIONS, BY_VALUE))
    assert names.keys() <= of(OPTIONS, monkeypatch).keys()


def test_each_option_that_names_something_has_its_content() -> None:
    assert {name for name, _ in marked(OPTIONS, BY_CONTENT)} == set(CONTENTS)


@pytest.mark.parametrize("name", [name for name, _ in marked(OPTIONS, BY_VALUE)])
def test_another_value_is_another_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = OTHER[name]  # a new marked option is to be given another value above
    if name.startswith("lora."):
        lora = dataclasses.replace(OPTIONS.lora, **{name.removeprefix("lora."): value})
        changed = dataclasses.replace(OPTIONS, lora=lora)
    else:
        changed = dataclasses.replace(OPTIONS, **{name: value})
    before, after = of(OPTIONS, monkeypatch), of(changed, monkeypatch)
    assert {key for key in before if before[key] != after[key]} == {name}


def test_the_order_of_targets_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = dataclasses.replace(OPTIONS, lora=LoRAOptions(targets=("wv", "wq")))
    assert of(OPTIONS, monkeypatch) == of(turned, monkeypatch)


def test_weights_are_another_run_and_none_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(*names: str) -> dict[str, Any]:
        return of(dataclasses.replace(OPTIONS, data=list(map(Path, names))), monkeypatch)

    assert given("a", "b") == given("a:1", "b") == of(OPTIONS, monkeypatch)
    was, now = given("a", "b"), given("a", "b:0.5")
    assert differences(was, now) == [
        "weights of --data: the run began with None, and is now given ['1', '1/2']"
    ]
    assert differences(now, given("a", "b:1/2")) == []


def test_the_order_of_columns_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = (("prompt", "q"), ("completion", "a"))
    asked, turned = (
        dataclasses.replace(OPTIONS, columns=pairs) for pairs in (columns, columns[::-1])
    )
    assert of(asked, monkeypatch) == of(turned, monkeypatch)
    assert of(asked, monkeypatch)["columns"] == "completion=a,prompt=q"


def test_leaves_are_named_from_the_outside_in() -> None:
    assert dict(leaves("", {"a": {"b": 1, "c": {"d": None}}, "e": [2]})) == {
        "a.b": 1,
        "a.c.d": None,
        "e": [2],
    }
    assert dict(leaves("top", 3)) == {"top": 3} and dict(leaves("top", {})) == {}


def test_the_digest_tells_tokens_labels_and_borders_apart() -> None:
    rows = [
        [[Example([1, 2, 3], [1, 2, 3], 1)]],
        [[Example([1, 2, 4], [1, 2, 3], 1)]],
        [[Example([1, 2, 3], [1, -100, 3], 1)]],
        [[Example([1, 2], [1, 2], 1), Example([3], [3], 2)]],
    ]
    assert len({examples_digest(r) for r in rows}) == len(rows)
