"""Rotary scalings are transformers' own, from each way in which a file can describe them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.model.documents import Documents
from llama.model.rope import inverse_frequencies
from llama.model.scaling import YarnScaling
from llama.model.transformer import Transformer
from llama.weights.open_model import open_model
from tests.parity.test_logits import loaded
from tests.support.model_files import TINY, random_state, write_gguf, write_huggingface

LENGTH = 96
"""Past the original positions of every scaling below, within the model's 128."""
RELATIVE = 1e-4
WIDE = replace(TINY, head_dim=32)
"""Sixteen frequencies, so that the ramps of yarn have something between their ends."""
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


def old(scaling: dict[str, Any], **more: Any) -> dict[str, Any]:
    """As transformers 4 writes it."""
    return {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": scaling, **more}


def new(scaling: dict[str, Any], **more: Any) -> dict[str, Any]:
    """As transformers 5 writes it."""
    return {"rope_parameters": {"rope_theta": 10000.0, **scaling}, **more}


FIELDS: dict[str, dict[str, Any]] = {
    "linear": old({"rope_type": "linear", "factor": 4.0}),
    "linear, its older spelling": old({"type": "linear", "factor": 2}),
    "linear, transformers 5": new({"rope_type": "linear", "factor": 2.5}),
    "dynamic, within the positions": old({"type": "dynamic", "factor": 4.0}),
    "llama3": old(LLAMA3),
    "llama3, transformers 5": new(LLAMA3, rope_theta=500000.0),
    "yarn": old(YARN),
    "yarn, transformers 5": new(YARN),
    "yarn, another base": new({**YARN, "rope_theta": 500000.0}),
    "yarn, its own betas": old({**YARN, "beta_fast": 4, "beta_slow": 0.1}),
    "yarn, betas of zero": old({**YARN, "beta_fast": 0, "beta_slow": 0}),
    "yarn, a ramp without width": old({**YARN, "beta_fast": 1, "beta_slow": 1, "truncate": False}),
    "yarn, not truncated": old({**YARN, "truncate": False}),
    "yarn, attention_factor": old({**YARN, "attention_factor": 1.5}),
    "yarn, mscale": old({**YARN, "mscale": 1.5, "mscale_all_dim": 0.8}),
    "yarn, one mscale alone": old({**YARN, "mscale": 1.5}),
    "yarn, mscale of zero": old({**YARN, "mscale": 0, "mscale_all_dim": 0}),
    "yarn, attention_factor and mscale": old(
        {**YARN, "attention_factor": 0.9, "mscale": 2.0, "mscale_all_dim": 1.0}
    ),
    "yarn, factor from the lengths": old({**YARN, "factor": None}),
    "yarn, original from the positions": old({"type": "yarn", "factor": 4.0}),
    "original beside, not inside": old(YARN, original_max_position_embeddings=64),
    "original beside, for llama3": new(LLAMA3, original_max_position_embeddings=64),
    "both forms": {"rope_parameters": DEFAULT, "rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "both forms, the other way": {
        "rope_parameters": {**LLAMA3, "rope_theta": 500.0},
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "an empty rope_scaling": {"rope_parameters": {**DEFAULT, **LLAMA3}, "rope_scaling": {}},
    "a base beside and inside": {"rope_parameters": DEFAULT, "rope_theta": 500000.0},
    "a base in rope_scaling": old({"type": "linear", "factor": 2.0, "rope_theta": 500.0}),
    "fields that are not used": old({**YARN, "rope_type": "linear"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_huggingface(path, WIDE)
    return path


def edited(folder: Path, to: Path, fields: dict[str, Any]) -> Path:
    """The model of `folder` with other fields in its config.json; None takes one out."""
    for file in folder.iterdir():
        (to / file.name).symlink_to(file)
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    (to / "config.json").unlink()
    (to / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )
    return to


def ids() -> torch.Tensor:
    return torch.randint(0, WIDE.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def ours(model: Transformer) -> torch.Tensor:
    return model(ids(), torch.arange(LENGTH), Documents((0, LENGTH)))


@torch.no_grad()
def theirs(folder: Path) -> torch.Tensor:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(ids().unsqueeze(0)).logits[0]


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=RELATIVE * float(expected.abs().max()))


@pytest.mark.parametrize("name", FIELDS)
def test_logits_are_transformers(name: str, folder: Path, tmp_path: Path) -> None:
    path = edited(folder, tmp_path, FIELDS[name])
    assert_equal(ours(loaded(path)), theirs(path))


SAME = {
    "yarn, betas of zero": "yarn",
    "yarn, transformers 5": "yarn",
    "yarn, mscale of zero": "yarn",
    "yarn, one mscale alone": "yarn",
    "yarn, factor from the lengths": "yarn",
    "llama3, transformers 5": "llama3",
    "an empty rope_scaling": "llama3",
    "fields that are not used": "linear",
    "both forms, the other way": "linear, its older spelling",
    "a base beside and inside": "dynamic, within the positions",
}
"""What is meant to equal another; all else differs."""


def test_each_scaling_is_felt(folder: Path, tmp_path: Path) -> None:
    """Else the comparison above would say nothing of it."""
    seen: dict[str, torch.Tensor] = {}
    for number, (name, fields) in enumerate(FIELDS.items()):
        path = tmp_path / str(number)
        path.mkdir()
        seen[name] = ours(loaded(edited(folder, path, fields)))
    for name, logits in seen.items():
        for other in list(seen)[: list(seen).index(name)]:
            far = float((logits - seen[other]).abs().max()) > 10 * RELATIVE * float(logits.max())
            assert far == (SAME.get(name, name) != SAME.get(other, other)), (name, other)


def test_which_of_two_is_taken_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(folder, tmp_path, FIELDS["both forms"])
    open_model(str(path))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{path / 'config.json'}: rope_scaling and rope_par" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("yarn", ""),
        ("a base beside and inside", "rope_theta 500000 and the 10000 of rope_parameters disagree"),
        ("fields that are not used", "does not use original_max_position_embeddings = 32"),
    ],
)
def test_what_is_left_unread_is_said(
    name: str, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_model(str(edited(folder, tmp_path, FIELDS[name])))
    lines = capsys.readouterr().err
    assert said in lines and lines.count("\n") == bool(said)


GGUF: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "no type": ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "yarn": ({"type": "yarn", "factor": 4.0, "original_context_length": 32}, YARN),
    "yarn, betas": (
        {
            "type": "yarn",
            "factor": 4.0,
            "original_context_length": 32,
            "yarn_beta_fast": 4.0,
            "yarn_beta_slow": 0.5,
        },
        {**YARN, "beta_fast": 4.0, "beta_slow": 0.5},
    ),
    "type none": ({"type": "none", "factor": 4.0}, {"rope_type": "default"}),
    "factor 1": ({"factor": 1.0}, {"rope_type": "default"}),
}


def with_rope(path: Path, values: dict[str, Any]) -> Path:
    """WIDE as GGUF with these fields of `rope.scaling`."""
    import gguf

    plain = gguf.GGUFWriter.write_header_to_file

    def more(writer: Any) -> None:
        for key, value in values.items():
            add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
            add[type(value)](f"llama.rope.scaling.{key}", value)
        plain(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", more)
        write_gguf(path, WIDE, random_state(WIDE))
    return path


@pytest.mark.parametrize("name", GGUF)
def test_gguf_s_fields_mean_the_same(name: str, folder: Path, tmp_path: Path) -> None:
    values, fields = GGUF[name]
    model = loaded(with_rope(tmp_path / "model.gguf", values))
    path = tmp_path / "hf"
    path.mkdir()
    assert_equal(ours(model), theirs(edited(folder, path, old(fields))))


def test_gguf_s_attention_factor_multiplies(tmp_path: Path) -> None:
    values = GGUF["yarn"][0]
    plain = open_model(str(with_rope(tmp_path / "a.gguf", values))).config.rope_scaling
    path = with_rope(tmp_path / "b.gguf", {**values, "yarn_attn_factor": 1.5})
    scaling = open_model(str(path)).config.rope_scaling
    assert isinstance(scaling, YarnScaling) and isinstance(plain, YarnScaling)
    assert scaling == replace(plain, attention_factor=1.5 * plain.attention_factor)


def test_a_scaled_table_is_real_on_a_model_built_on_meta() -> None:
    config = replace(WIDE, rope_scaling=YarnScaling(4.0, 32, 1.1))
    with torch.device("meta"):
        assert inverse_frequencies(config).device.type == "cpu"
