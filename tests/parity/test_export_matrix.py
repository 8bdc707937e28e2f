"""Every family of LLaMA's architecture is read and written as transformers has it. The whole table
is `python -m tests.parity.export_matrix`; docs/exports.md keeps it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from llama.model.config import ModelConfig
from llama.weights.open_model import open_model
from tests.parity.export_matrix import (
    COLUMNS,
    HEAD,
    LIMIT,
    NONE,
    OUTS,
    READ,
    ROUNDING,
    RULES_TITLE,
    Row,
    rows_of,
    rules,
)
from tests.parity.families import FAMILIES, Family, Inputs, SmolLM2, Stories260k
from tests.support.model_files import ROOT

NAMED = {family.name: family for family in FAMILIES}
SOUND = Row("x", "hf", 1, {name: LIMIT / 2 for name in (READ, *OUTS)}, 0.01, 0.01)


@pytest.mark.parametrize("family", FAMILIES, ids=NAMED.keys())
def test_the_config_of_the_release_is_read_whole(
    family: Family, tmp_path: Path, capsys: Any
) -> None:
    """With nothing in it that a line would have to name."""
    family.write_huggingface(tmp_path / "hf")
    capsys.readouterr()
    source = open_model(str(tmp_path / "hf"))
    assert source.config == family.config and source.tokenizer_path is not None
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("Vicuna", (1,)),
        ("Llama 3.2", (1,)),
        pytest.param("Mistral", (1, 2), marks=pytest.mark.long),
    ],
)
def test_a_family_goes_through_every_format(
    name: str, degrees: tuple[int, ...], tmp_path: Path
) -> None:
    family = NAMED[name]
    found = rows_of(family, tmp_path / "new", degrees)
    formats = {"hf", "gguf"} | ({"meta"} if family.says_meta else set())
    assert {(row.source, row.degree) for row in found} == set(product(formats, degrees))
    for row in found:
        assert row.problems == [], row
        none = {column for column, cell in row.cells.items() if cell is None}
        assert none == (set() if family.says_meta else {"meta", "meta, cut"})


@dataclass(frozen=True)
class InOneFormat:
    """A family that is read from Hugging Face's layout alone."""

    family: Family
    name: str = "x"
    degree: int = 2

    def write(self, folder: Path) -> Inputs:
        made = self.family.write(folder)
        return replace(made, models={"hf": made.models["hf"]})


@pytest.mark.slow
def test_a_wrong_rule_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here eps, which no shape shows: the proof of `export` reads it as wrong as the source's."""
    from llama.weights import huggingface_config

    def slightly_off(**sizes: Any) -> ModelConfig:
        return replace(ModelConfig(**sizes), norm_eps=1e-3)

    monkeypatch.setattr(huggingface_config, "ModelConfig", slightly_off)
    (row,) = rows_of(InOneFormat(NAMED["Llama 3"]), tmp_path / "new", [1])
    assert row.problems[:5] == [READ, *OUTS][:5]


def test_what_is_beyond_a_limit() -> None:
    assert SOUND.problems == []
    for column in (READ, *OUTS):
        for value in (2 * LIMIT, float("nan")):
            assert replace(SOUND, cells={**SOUND.cells, column: value}).problems == [column]
    for moved in (0.02, 0.0, float("nan")):
        assert replace(SOUND, moved=moved).problems == ["q8_0 moves"]


def test_the_committed_table_is_whole_and_within_its_limits() -> None:
    text = (ROOT / "docs" / "exports.md").read_text()
    assert text.startswith(HEAD)
    table, shapes = text.removeprefix(HEAD).split(RULES_TITLE)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| ")
    ][2:]
    formats = {family.name: 3 if family.says_meta else 2 for family in FAMILIES}
    formats |= {published.name: 3 for published in (SmolLM2, Stories260k)}
    for name, count in formats.items():
        assert sum(cells[0] == name for cells in lines) == 2 * count, name
    assert len(lines) == 2 * sum(formats.values())
    for cells in lines:
        assert len(cells) == len(COLUMNS)
        *values, moved, alone = cells[3:]
        assert all(value == NONE or float(value) <= LIMIT for value in values), cells
        assert abs(float(moved) / float(alone) - 1) <= ROUNDING, cells
    assert all(rules(family) in shapes for family in FAMILIES)
