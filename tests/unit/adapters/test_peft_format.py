"""PEFT folders: names both ways, a round trip, what PEFT itself makes of it, what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama.adapters.attach import attach, initialise, trainable_parameters
from llama.adapters.peft_config import load_config
from llama.adapters.peft_format import (
    CONFIG,
    WEIGHTS,
    AdapterConfig,
    from_peft,
    load_state,
    save,
    to_peft,
    with_published_base,
)
from llama.assembly.model import check_adapter
from llama.errors import UserError
from llama.model.config import LINEARS
from llama.model.transformer import Transformer
from llama.settings import LoRAOptions
from llama.weights.open_model import BUNDLED, BUNDLED_FROM
from tests.support.model_files import TINY

PLAIN = AdapterConfig(LoRAOptions(4, 8.0, 0.1, LINEARS), base_model="tiny")


def state() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = Transformer(TINY)
        attach(model, PLAIN.options)
    initialise(model, 0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(p.shape, generator=generator)
        for name, p in trainable_parameters(model).items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "adapter", state(), PLAIN)
    return tmp_path / "adapter"


def changed(folder: Path, **fields: Any) -> Path:
    document = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(document | fields))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_config(folder)
        load_state(folder)
        check_adapter(folder, TINY)
    (problem,) = raised.value.problems
    return problem


def test_names_are_peft_s() -> None:
    ours = {
        "layers.3.attention.wq.lora.a": torch.zeros(1),
        "layers.0.feed_forward.w2.lora.b": torch.ones(1),
    }
    theirs = to_peft(ours)
    prefix = "base_model.model.model.layers"
    assert set(theirs) == {
        f"{prefix}.3.self_attn.q_proj.lora_A.weight",
        f"{prefix}.0.mlp.down_proj.lora_B.weight",
    }
    assert from_peft(theirs, "file") == ours


def test_a_round_trip_keeps_everything(folder: Path) -> None:
    found = load_config(folder)
    assert replace(found.options, targets=LINEARS) == PLAIN.options
    assert set(found.options.targets) == set(LINEARS) and found.base_model == "tiny"
    loaded, expected = load_state(folder), state()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_half_precision_is_written_and_read_as_float32(tmp_path: Path) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in state().items()}
    save(tmp_path, halves, PLAIN)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {torch.float32}
    assert all(torch.equal(load_state(tmp_path)[name], t.float()) for name, t in halves.items())


def test_peft_reads_the_configuration_as_it_is_meant(folder: Path) -> None:
    from peft import LoraConfig, PeftConfig

    theirs = PeftConfig.from_pretrained(folder)
    assert isinstance(theirs, LoraConfig)
    assert (theirs.r, theirs.lora_alpha, theirs.lora_dropout) == (4, 8.0, 0.1)
    assert theirs.target_modules == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_a_folder_that_peft_wrote_is_read(tmp_path: Path) -> None:
    """With all the fields that it writes of its own."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    from tests.support.model_files import huggingface_config

    base = LlamaForCausalLM(huggingface_config(TINY))
    chosen = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    get_peft_model(base, chosen).save_pretrained(tmp_path)
    check_adapter(tmp_path, TINY)
    assert set(load_config(tmp_path).options.targets) == {"wq", "w2"}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("peft_type", "IA3", "expected LORA, found 'IA3'"),
        ("r", 0, "must be a positive integer; found 0"),
        ("r", "4", "found '4'"),
        ("r", True, "found true"),
        ("lora_alpha", None, "must be a positive number; it is missing"),
        ("lora_alpha", float("nan"), "must be a positive number; found NaN"),
        ("target_modules", [], "expected a list of layer names"),
        ("target_modules", ["q_proj", "lm_head"], "'lm_head' is no linear layer"),
        ("fan_in_fan_out", True, "not supported"),
        ("lora_bias", True, "not supported"),
        ("alora_invocation_tokens", [5, 6], "not supported"),
        ("init_lora_weights", "pissa_niter_4", "changes the base model's weights"),
        ("alpha_pattern", {".*q_proj": 8}, "is an expression; give the names of layers"),
        ("alpha_pattern", {"q_proj": "8"}, "must be a positive number; found '8'"),
        ("alpha_pattern", [8], "expected an object"),
        ("layers_to_transform", ["0"], "expected numbers of layers"),
        ("layer_replication", [[0, 1]], "not supported"),
        ("modules_to_save", ["lm_head"], "only factors of linear layers are read"),
        ("trainable_token_indices", [3], "only factors of linear layers are read"),
        ("target_parameters", ["w"], "only factors of linear layers are read"),
        ("bias", "all", "only 'none' is supported, found 'all'"),
    ],
)
def test_a_field_that_means_another_arithmetic_is_refused(
    field: str, value: Any, said: str, folder: Path
) -> None:
    problem = refusal(changed(folder, **{field: value}))
    assert re.search(rf"{CONFIG}: {field}\b", problem) and said in problem


def test_every_problem_is_told_at_once(folder: Path) -> None:
    with pytest.raises(UserError) as raised:
        load_config(changed(folder, r=0, use_qalora=True, bias="all"))
    assert len(raised.value.problems) == 3


def test_files_that_are_no_adapter_are_refused(folder: Path) -> None:
    (folder / CONFIG).write_text("[]")
    assert "expected a JSON object, found a list" in refusal(folder)
    (folder / CONFIG).write_text("{")
    assert "line 1: not JSON" in refusal(folder)
    (folder / CONFIG).unlink()
    assert "does not exist" in refusal(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    assert "not a whole safetensors file" in refusal(folder)
    (folder / WEIGHTS).unlink()
    assert "does not exist" in refusal(folder)


def test_tensors_that_do_not_fit_are_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def refused(**put: torch.Tensor) -> str:
        kept = {n: t for n, t in tensors.items() if n != name}
        save_file(kept | put, folder / WEIGHTS)
        return refusal(folder)

    assert f"one factor without the other: {name.replace('lora_A', 'lora_B')}" in refused()
    assert "has shape [4, 63], this model needs [4, 64]" in refused(**{name: torch.ones(4, 63)})
    nan = torch.full((4, 64), torch.nan)
    assert "is not finite" in refused(**{name: nan})
    fine = {name: tensors[name]}
    stranger = name.replace("layers.0", "layers.9")
    assert "made for another base" in refused(**fine, **{stranger: torch.ones(4, 64)})
    assert "is not a LoRA factor" in refused(**fine, **{name + ".more": torch.ones(4, 64)})


def test_rslora_is_peft_s_field(tmp_path: Path) -> None:
    from peft import PeftConfig

    for scale, said in ("alpha/r", False), ("alpha/sqrt(r)", True):
        options = replace(PLAIN.options, scale=scale)
        save(tmp_path, state(), AdapterConfig(options, "tiny"))
        assert PeftConfig.from_pretrained(tmp_path).use_rslora is said  # type: ignore[attr-defined]
        assert load_config(tmp_path).options.scale == scale


def test_a_field_that_is_not_known_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_config(changed(folder, new_thing=True, other_thing={"a": 1}, off=False))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{CONFIG}: not used here: new_thing, other_thing")


def test_other_programs_are_told_a_name_that_they_know(tmp_path: Path) -> None:
    """Ours of the bundled model is neither a folder nor a name on the hub."""
    for name, told in ((BUNDLED, BUNDLED_FROM), ("tiny", "tiny")):
        save(tmp_path, state(), AdapterConfig(PLAIN.options, name))
        content = (tmp_path / CONFIG).read_bytes()
        document = json.loads(content)
        assert document["base_model_name_or_path"] == told
        assert with_published_base(content) == content
        earlier = json.dumps(document | {"base_model_name_or_path": name}).encode()
        assert json.loads(with_published_base(earlier)) == document
