"""What `export` writes for vLLM, and the command that it prints, by vLLM's own rules
(`tests/support/vllm_rules.py`)."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llama.adapters.attach import adapters, attach, attach_each, initialise
from llama.adapters.peft_format import AdapterConfig, save
from llama.assembly.model import read_adapter
from llama.commands.export.command import export
from llama.commands.export.next_steps import VLLM_RANK, VLLM_RANKS
from llama.model.config import LINEARS
from llama.model.transformer import Transformer
from llama.settings import ExportOptions, LoRAOptions
from llama.weights import huggingface_writer
from llama.weights.names import from_huggingface
from llama.weights.open_model import open_model
from tests.support import vllm_rules
from tests.support.closeness import assert_close
from tests.support.skips import outside
from tests.support.tiny_runs import CONFIG, write_meta_model, write_model

PRODUCT = 1e-5
"""Relative: factors multiplied in float32, in one order or another; PiSSA's differ in sums."""
PLAIN = LoRAOptions(4, 8.0, 0.0, ("wq", "wv"))
ADAPTERS: dict[str, LoRAOptions] = {
    "plain": PLAIN,
    "all-linear": LoRAOptions(16, 8.0, 0.0, LINEARS),
    "rslora": LoRAOptions(4, 8.0, 0.0, LINEARS, scale="alpha/sqrt(r)"),
    "loraplus": LoRAOptions(4, 8.0, 0.0, LINEARS, b_lr_ratio=8.0),
    "pissa": LoRAOptions(12, 8.0, 0.0, LINEARS, start="pissa"),
    "pissa rslora": LoRAOptions(4, 8.0, 0.0, LINEARS, start="pissa", scale="alpha/sqrt(r)"),
    "rank 17": LoRAOptions(17, 8.0, 0.0, ("wo",)),
}


def written(folder: Path, options: LoRAOptions, layers: tuple[int, ...] = (0, 1)) -> Path:
    """A folder of an adapter of these blocks, with values as if it were trained."""
    model = Transformer(CONFIG)
    source = open_model(str(write_model(folder / "model")))
    model.load_state_dict({name: source.reader.read(name) for name in source.reader.names()})
    attach(model, options)
    initialise(model, 0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in model.named_parameters():
        if ".lora." in name and int(name.split(".")[1]) in layers:
            noise = 0.1 * torch.randn(tensor.shape, generator=generator)
            state[name] = tensor.detach() + (noise if tensor.requires_grad else 0)
    save(folder / "adapter", state, AdapterConfig(options, "tiny"))
    return folder


def say(folder: Path, **fields: Any) -> None:
    """Put `fields` into the adapter's configuration."""
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def exported(folder: Path, **more: Any) -> Path:
    options: dict[str, Any] = {"format": "peft", "adapter": folder / "adapter"} | more
    out = folder / "out"
    model = options.pop("model", str(folder / "model"))
    assert export(ExportOptions(model=model, output_dir=out, **options)) == 0
    return out


def commands(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    said = capsys.readouterr().out.partition("next:\n")[2]
    return [shlex.split(line) for line in said.splitlines()]


def served_rank(words: list[str]) -> int:
    asked = words[words.index("--max-lora-rank") + 1] if "--max-lora-rank" in words else None
    return int(asked) if asked is not None else vllm_rules.RANK


def added(folder: Path) -> dict[str, torch.Tensor]:
    """By native layer, what the adapter adds to its weight here."""
    layers, state = read_adapter(folder / "adapter", CONFIG)
    model = Transformer(CONFIG)
    attach_each(model, layers)
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        return {name: adapter.delta(torch.empty(0)) for name, adapter in adapters(model)}


def assert_the_same(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> None:
    names = {name: from_huggingface(f"{name}.weight") for name in theirs}
    found = {str(native).removesuffix(".weight"): theirs[name] for name, native in names.items()}
    assert found.keys() == ours.keys()
    for name, product in ours.items():
        assert_close(found[name], product, PRODUCT, name)


@pytest.mark.parametrize("name", ADAPTERS)
def test_vllm_adds_what_is_added_here(name: str, tmp_path: Path, capsys) -> None:
    folder = written(tmp_path, ADAPTERS[name])
    out = exported(folder)
    (words,) = commands(capsys)
    assert words[:4] == ["vllm", "serve", str(folder / "model"), "--enable-lora"]
    assert f"NAME={out}" in words and "--chat-template" not in words
    rank = served_rank(words)
    assert vllm_rules.broken(out, rank) == []
    assert_the_same(vllm_rules.products(out), added(folder))
    wider = 2 if name.startswith("pissa") else 1
    assert (rank > vllm_rules.RANK) == (wider * ADAPTERS[name].rank > vllm_rules.RANK)


def test_a_subset_of_layers_is_told_by_the_tensors(tmp_path: Path) -> None:
    folder = written(tmp_path, PLAIN, layers=(1,))
    say(folder, layers_to_transform=[1])
    out = exported(folder)
    assert vllm_rules.broken(out, vllm_rules.RANK) == []
    assert_the_same(vllm_rules.products(out), added(folder))


def test_layers_that_differ_are_read_and_a_user_is_told(tmp_path: Path, capsys) -> None:
    """An adapter from elsewhere with patterns of rank and alpha."""
    folder = written(tmp_path, PLAIN)
    alphas = {"layers.1.self_attn.q_proj": 32.0, "v_proj": 4.0}
    say(folder, r=3, rank_pattern={"q_proj": 4, "v_proj": 4}, alpha_pattern=alphas)
    out = exported(folder)
    assert "its layers differ in rank or alpha" in capsys.readouterr().out
    assert vllm_rules.broken(out, vllm_rules.RANK) == []
    assert_the_same(vllm_rules.products(out), added(folder))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (LoRAOptions(4, 8.0, 0.0, ("wq",), kind="dora"), "adapters of kind dora"),
        (LoRAOptions(513, 8.0, 0.0, ("wq",)), "adapters of rank 513, but up to 512"),
    ],
    ids=["dora", "rank 513"],
)
def test_what_vllm_refuses_is_to_be_merged(options, why, tmp_path: Path, capsys) -> None:
    folder = written(tmp_path, options)
    out = exported(folder)
    text = capsys.readouterr().out
    assert f"vLLM does not serve {why}: merge it instead" in text
    (line,) = text.partition("next:\n")[2].splitlines()
    words = shlex.split(line)
    assert words[words.index("--format") + 1] == "hf"
    assert words[words.index("--adapter") + 1] == str(folder / "adapter")
    assert vllm_rules.broken(out, VLLM_RANKS[-1])


def test_the_base_is_written_first_where_vllm_does_not_read_it(tmp_path: Path, capsys) -> None:
    """And the template is named: vLLM knows the base's alone."""
    folder = written(tmp_path, PLAIN)
    exported(folder, format="gguf", adapter=None)
    (folder / "out").rename(folder / "gguf")
    capsys.readouterr()
    out = exported(folder, model=str(folder / "gguf" / "model.gguf"), template="chatml")
    base, serve = commands(capsys)
    assert base[base.index("--format") + 1] == "hf"
    assert base[base.index("--output_dir") + 1] == serve[2] == "BASE"
    template = Path(serve[serve.index("--chat-template") + 1])
    assert template.parent == out and "<|im_start|>" in template.read_text()


def test_llama_cpp_is_told_of_the_template_too(tmp_path: Path, capsys) -> None:
    folder = written(tmp_path, PLAIN)
    out = exported(folder, format="gguf-lora", template="chatml")
    base, serve = commands(capsys)
    assert base[base.index("--format") + 1] == "gguf" and serve[:3] == [
        *("llama-server", "-m", "BASE/model.gguf")
    ]
    assert serve[serve.index("--lora") + 1] == str(out / "adapter.gguf")
    template = Path(serve[serve.index("--chat-template-file") + 1])
    assert "<|im_start|>" in template.read_text()


def test_the_numbers_that_the_command_knows_are_vllm_s() -> None:
    assert (VLLM_RANKS, VLLM_RANK) == (vllm_rules.RANKS, vllm_rules.RANK)


@pytest.mark.parametrize("name", [*ADAPTERS, "dora"])
def test_vllm_s_own_files_read_it(name: str, tmp_path: Path, capsys) -> None:
    """`peft_helper.py`, `lora_model.py` and `lora_weights.py` out of vLLM's package."""
    files = outside(f"vllm-{vllm_rules.VERSION}")
    dora = LoRAOptions(4, 8.0, 0.0, ("wq",), kind="dora")
    folder = written(tmp_path, ADAPTERS.get(name, dora))
    out = exported(folder)
    rank = served_rank(commands(capsys)[0])
    if name == "dora":
        with pytest.raises(ValueError, match="does not yet support DoRA"):
            vllm_rules.real(files, out, rank)
        return
    assert_the_same(vllm_rules.real(files, out, rank), added(folder))
    allowed = [most for most in vllm_rules.RANKS if most < rank]
    if rank > vllm_rules.RANK:
        with pytest.raises(ValueError, match="is greater than max_lora_rank"):
            vllm_rules.real(files, out, allowed[-1])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_vllm_finds_every_weight_of_a_merged_folder(tied, tmp_path: Path, monkeypatch) -> None:
    """Files by the index, all of it there (model_loader/weight_utils.py,
    filter_duplicate_safetensors_files); each parameter of its LlamaForCausalLM from a weight
    (model_loader/default_loader.py, track_weights_loading), lm_head from embed_tokens where
    tied (models/llama.py); the class by `architectures` (config/model.py); nothing of another
    format that would be taken first (consolidated*.safetensors)."""
    monkeypatch.setattr(huggingface_writer, "FILE_BYTES", 40_000)
    model = tmp_path / "model"
    write_meta_model(model) if tied else write_model(model)
    if not tied:
        config = json.loads((model / "config.json").read_text())
        del config["architectures"]
        (model / "config.json").write_text(json.dumps(config))
    out = exported(tmp_path, model=str(model), format="hf", adapter=None, template="alpaca")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert config.get("tie_word_embeddings", False) == tied
    names = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(names.values()) == {path.name for path in out.glob("*.safetensors")}
    assert len(set(names.values())) > 1 and not list(out.glob("consolidated*"))
    for name, file in names.items():
        with safe_open(out / file, "pt") as opened:
            assert name in opened.keys()
    head, inner = ["lm_head.weight"] * (not tied), ("self_attn", "mlp")
    modules = {
        f"{inner[module in ('gate_proj', 'up_proj', 'down_proj')]}.{module}.weight"
        for module in vllm_rules.MODULES - {"embed_tokens", "lm_head"}
    }
    norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    assert set(names) == {
        *("model.embed_tokens.weight", "model.norm.weight"),
        *head,
        *(f"model.layers.{i}.{name}" for i in range(CONFIG.n_layers) for name in modules | norms),
    }
    assert all(len(load_file(out / file)) for file in set(names.values()))
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] is not None
    assert (out / "chat_template.jinja").exists()
