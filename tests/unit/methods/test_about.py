"""What lies beside a result: the JSON, read back; the card as the hub reads it; refusals."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama.errors import UserError
from llama.methods.about import CARD, FILES, TRAINING, Recorded, complete_card, read_recorded
from llama.pages.card import card
from llama.pages.sample import Sample
from tests.support.failing_calls import At, before_each_call, operations
from tests.support.origin import ORIGIN, about


def write(folder: Path, **base: Any) -> dict[str, Any]:
    origin = replace(ORIGIN, base={**ORIGIN.base, **base})
    for name, content in replace(about(8), origin=origin).files().items():
        (folder / name).write_bytes(content)
    return json.loads((folder / TRAINING).read_text())


def front_of(text: str) -> dict[str, Any]:
    empty, front, _ = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front)


def test_what_decides_the_use_comes_back(tmp_path: Path) -> None:
    write(tmp_path, path="/models/tiny")
    assert read_recorded(tmp_path) == Recorded(
        "tiny", Path("/models/tiny"), "0" * 64, None, "1" * 64, "a template of its own"
    )


def test_a_folder_of_another_program_says_nothing(tmp_path: Path) -> None:
    assert read_recorded(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format 2 is not read by this program"),
        ({"base": []}, "base.name: expected a text, found null"),
        ({"base": {"name": "a", "sampled_sha256": 1}}, "base.sampled_sha256: expected a text"),
        ({"tokenizer": {"sha256": "a", "path": 3}}, "tokenizer.path: expected a text, found 3"),
        ({"template": {"name": ""}}, "template.name: expected a text, found ''"),
    ],
)
def test_what_is_no_such_file_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    document = write(tmp_path) | changes
    (tmp_path / TRAINING).write_text(json.dumps(document))
    with pytest.raises(UserError) as raised:
        read_recorded(tmp_path)
    line = raised.value.problems[0]
    assert says in line and line.startswith(f"{tmp_path / TRAINING}: ")


def test_the_hub_reads_the_card_s_head(tmp_path: Path) -> None:
    """It takes models and data sets by their names there, and nothing else for them."""
    write(tmp_path)
    assert front_of((tmp_path / CARD).read_text()) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "lora", "llama-lora"],
        "datasets": ["who/what"],
    }
    write(tmp_path, hub="org/model")
    assert "`tiny`, a quantised copy of `org/model`" in (tmp_path / CARD).read_text()
    assert front_of((tmp_path / CARD).read_text())["base_model"] == "org/model"


def test_the_card_says_data_losses_and_settings(tmp_path: Path) -> None:
    text = card(write(tmp_path, name="/models/tiny|odd"))
    assert "| `rows.json` and 2 more | 1,200 | 1,100 | 50,000 | 9,000 | `222222222222` |" in text
    assert "| held out, before training | 2.5000 |\n| held out, at this step | 1.2500 |" in text
    assert "| `lora.rank` | 4 |" in text and "step | 8 of 8 |" in text
    assert "`/models/tiny\\|odd`" in text, "a bar would end the cell"


def test_a_card_has_no_losses_where_none_are_known(tmp_path: Path) -> None:
    """As of an adapter that was combined of others."""
    none = {"eval_loss_before": None, "eval_loss": None, "epoch_losses": []}
    assert "Losses" not in card(write(tmp_path) | {"losses": none})


def test_the_card_of_a_whole_model_is_another(tmp_path: Path) -> None:
    text = card(write(tmp_path) | {"method": "full"})
    assert front_of(text)["library_name"] == "transformers"
    assert "--model FOLDER" in text and "peft" not in text.lower()


def test_no_text_of_a_sample_ends_its_block(tmp_path: Path) -> None:
    sample = Sample("Held out", "a", "```\n# not a heading\n````", "c" * 5000)
    text = card(write(tmp_path), [sample])
    assert "`````text\n```\n# not a heading\n````\n`````\n" in text
    assert f"{'c' * 1200} [...]" in text and "c" * 1201 not in text


def test_a_card_is_completed_whole_or_stays(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write(folder)
    before = {name: (folder / name).read_bytes() for name in FILES}

    def complete() -> None:
        complete_card(folder, [Sample("Held out", "why", "old", "new")])

    def fail() -> None:
        raise OSError(28, "No space left on device")

    count = operations(complete)
    completed = (folder / CARD).read_bytes()
    assert b"```text\nwhy\n```" in completed and b"why" not in before[CARD]
    (folder / CARD).write_bytes(before[CARD])
    for index in range(count):
        with before_each_call(At(index, fail)), pytest.raises(OSError, match="No space left"):
            complete()
        assert sorted(os.listdir(folder)) == sorted(FILES)
        named = index > count - 3  # what fails after it has its name is the folder's own sync
        assert (folder / CARD).read_bytes() == before[CARD] or named
    others = [name for name in FILES if name != CARD]
    assert all((folder / name).read_bytes() == before[name] for name in others)
