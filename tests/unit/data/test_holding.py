"""Rows held out of the data itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llama.data.holding import HoldOut, shared_examples
from llama.data.prepare import Prepared, Reading, prepare, prepare_split
from llama.errors import UserError
from llama.tokenizer.templates import load_template
from tests.support.tokenizer_files import byte_tokenizer


def split(
    tmp_path: Path, texts: list[str], asked: float, seed: int = 0, seq_len: int = 64
) -> tuple[Prepared, Prepared]:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": text} for text in texts]))
    tokenizer = byte_tokenizer(tmp_path / "t")
    reading = Reading(seq_len, overlong="split")
    template = load_template("chatml", tokenizer)
    return prepare_split([path], template, tokenizer, reading, HoldOut(asked, seed))


def said(data: Prepared) -> set[tuple[int, ...]]:
    return {tuple(example.input_ids) for example in data.examples}


TEXTS = [f"text {i}" for i in range(100)]


@pytest.mark.parametrize(("asked", "count"), [(0.1, 10), (0.25, 25), (1, 1), (7, 7), (0.001, 1)])
def test_as_many_as_were_asked_for(tmp_path: Path, asked: float, count: int) -> None:
    training, held = split(tmp_path, TEXTS, asked)
    assert (len(training.examples), len(held.examples)) == (100 - count, count)
    assert (
        not said(training) & said(held) and shared_examples(training.examples, held.examples) == 0
    )
    assert training.report.examples == 100 - count and held.report.examples == count
    assert f"; {count} more are held out by --eval_split {asked:g}" in training.report.text()
    assert training.report.tokens == sum(len(e.input_ids) for e in training.examples)
    assert sum(map(len, training.packed)) == 100 - count and sum(map(len, held.packed)) == count
    assert [row.number for row in held.rows_numbered(held.row_numbers.tolist())] == [
        example.row for example in held.examples
    ]


def test_by_content_and_seed_and_not_by_place(tmp_path: Path) -> None:
    _, held = split(tmp_path, TEXTS, 20)
    turned = TEXTS[:]
    random.Random(0).shuffle(turned)
    assert said(split(tmp_path, turned, 20)[1]) == said(held) == said(split(tmp_path, TEXTS, 20)[1])
    assert said(split(tmp_path, TEXTS, 20, seed=1)[1]) != said(held)
    assert len(said(split(tmp_path, TEXTS[5:], 19)[1]) & said(held)) >= 14


def test_equal_rows_stay_on_one_side(tmp_path: Path) -> None:
    training, held = split(tmp_path, TEXTS * 3, 30)
    assert len(held.examples) == 30 and held.report.duplicates == 20
    assert not said(training) & said(held)


def test_the_pieces_of_a_text_stay_together(tmp_path: Path) -> None:
    training, held = split(tmp_path, [f"{i} " * 60 for i in range(10, 40)], 20)
    assert not {e.row for e in training.examples} & {e.row for e in held.examples}
    assert len(held.examples) >= 20 > len({e.row for e in held.examples}) > 1


def test_all_is_too_much(tmp_path: Path) -> None:
    for texts, asked in ((TEXTS, 100), (TEXTS, 0.999), (TEXTS[:1] * 9, 2)):
        with pytest.raises(UserError, match="leave none to train on"):
            split(tmp_path, texts, asked)


def test_what_two_sets_share_is_counted(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "t")
    template = load_template("chatml", tokenizer)
    sets = []
    for name, texts in (("a", TEXTS[:10]), ("b", [*TEXTS[8:12], TEXTS[9]])):
        (tmp_path / name).write_text(json.dumps([{"text": text} for text in texts]))
        sets.append(prepare([tmp_path / name], template, tokenizer, Reading(64)).examples)
    assert shared_examples(*sets) == 3
