"""What `export` writes, in what users serve with: transformers, PEFT and llama.cpp itself say what
the base with its adapter does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from llama.assembly.model import ready_model
from llama.commands.export.command import export
from llama.errors import TrainingError
from llama.model.decoding import Sampling, decode
from llama.model.documents import Documents
from llama.settings import ExportOptions
from llama.tokenizer.load import load_tokenizer
from llama.weights.open_model import open_model
from tests.bad_inputs.setting import write_adapter
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.llama_cpp import completion, serving
from tests.support.skips import outside
from tests.support.tiny_runs import CONFIG, write_meta_model, write_model
from tests.support.tokenizer_files import byte_description, write_tokenizer_json

IDS = torch.arange(24) * 5 % 261
ALL_LINEAR = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and an adapter on all its layers, of weights as large as a trained one's."""
    folder = tmp_path_factory.mktemp("export")
    write_model(folder / "model")
    write_adapter(folder / "adapter", targets=ALL_LINEAR, size=0.1)
    return folder


def exported(sound: Path, out: Path, format_: Any, **more: Any) -> dict[str, Any]:
    """Files that `export` writes of the tiny model and its adapter; what it says of them."""
    options: dict[str, Any] = {"model": str(sound / "model"), "adapter": sound / "adapter"}
    assert export(ExportOptions(format=format_, output_dir=out, **(options | more))) == 0
    return {path.name: path for path in out.iterdir()}


@torch.no_grad()
def logits_of(model: str, adapter: Path | None = None) -> torch.Tensor:
    ready = ready_model(open_model(model), adapter, "float32")
    return ready(IDS, torch.arange(len(IDS)), Documents([0, len(IDS)]))


@torch.no_grad()
def theirs(model: Any) -> torch.Tensor:
    return model.eval()(IDS[None]).logits[0]


def greedy(model: str, adapter: Path | None, prompt: str, count: int) -> list[int]:
    """The tokens that `generate --raw --precision float32` writes."""
    source = open_model(model)
    assert source.tokenizer_path is not None
    tokenizer = load_tokenizer(source.tokenizer_path)
    ids = [*tokenizer.text_begins, *tokenizer.encode(prompt)]
    ready = ready_model(source, adapter, "float32")
    return list(decode(ready, ids, count, tokenizer.stop_ids, Sampling()))


@pytest.mark.parametrize("options", [{}, {"shards": 2}], ids=["one shard", "two"])
@pytest.mark.parametrize("format_", ["hf", "meta", "gguf"])
def test_each_format_is_the_base_with_its_adapter(format_, options, sound, tmp_path) -> None:
    if options and format_ != "meta":
        options = {"dtype": "float32"}
    exported(sound, tmp_path / "out", format_, **options)
    expected = logits_of(str(sound / "model"), sound / "adapter")
    assert_close(logits_of(str(tmp_path / "out")), expected, SMALL_MODEL)


def test_transformers_and_peft_say_the_same(sound: Path, tmp_path: Path) -> None:
    """The merged folder; PEFT's own merge of the exported adapter; and its logits unmerged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = exported(sound, tmp_path / "hf", "hf", template="chatml")
    expected = logits_of(str(sound / "model"), sound / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert_close(theirs(merged), expected, SMALL_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<s><|im_start|>user\nhi<|im_end|>\n"
    assert json.loads(files["tokenizer_config.json"].read_text())["chat_template"]
    assert json.loads(files["generation_config.json"].read_text())["eos_token_id"] is not None
    files = exported(sound, tmp_path / "peft", "peft", template="chatml")
    own = AutoTokenizer.from_pretrained(tmp_path / "peft")
    assert own("he <|im_end|>") == tokenizer("he <|im_end|>")
    assert own.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == text
    assert "config.json" not in files and "generation_config.json" not in files
    base = AutoModelForCausalLM.from_pretrained(sound / "model", dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(base, str(tmp_path / "peft"))
    assert_close(theirs(adapted), expected, SMALL_MODEL)
    theirs_merged = dict(adapted.merge_and_unload().named_parameters())
    for name, value in merged.named_parameters():
        assert_close(value, theirs_merged[name], 1e-6, name)


def test_of_bf16_weights_the_sum_is_rounded_once(sound: Path, tmp_path: Path) -> None:
    """As float32 gives it, and not of a product or a sum that was bf16 itself."""
    exported(sound, tmp_path / "whole", "hf")
    exported(sound, tmp_path / "half", "hf", dtype="bfloat16")
    whole, half = (open_model(str(tmp_path / name)).reader for name in ("whole", "half"))
    for name in whole.names():
        assert torch.equal(half.read(name), whole.read(name).bfloat16()), name


def test_tensors_wider_than_the_layers_are_named(sound: Path, tmp_path: Path, capsys) -> None:
    """A bf16 model whose norms were trained in float32; values that bf16 holds are not told of."""
    from safetensors.torch import load_file, save_file

    model = write_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    kept = {"model.norm.weight", "model.embed_tokens.weight"}
    mixed = {n: t if n in kept else t.bfloat16() for n, t in tensors.items()}
    mixed["lm_head.weight"] = mixed["lm_head.weight"].float()
    save_file(mixed, model / "model.safetensors", metadata={"format": "pt"})
    plain: dict[str, Any] = {"model": str(model), "adapter": None}
    exported(sound, tmp_path / "narrow", "hf", **plain)
    said = "stored as float32 and rounded to bfloat16: 2, the first tok_embeddings.weight; --dtype"
    assert f"{said} float32 keeps them" in capsys.readouterr().err
    exported(sound, tmp_path / "wide", "hf", dtype="float32", **plain)
    assert "rounded to" not in capsys.readouterr().err
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert all(torch.equal(wide[name], value.float()) for name, value in mixed.items())


def test_a_gguf_lora_has_llama_cpp_s_names(sound: Path, tmp_path: Path) -> None:
    files = exported(sound, tmp_path / "out", "gguf-lora")
    read = gguf.GGUFReader(files["adapter.gguf"])
    assert read.fields["general.type"].contents() == "adapter"
    assert read.fields["adapter.type"].contents() == "lora"
    assert read.fields["adapter.lora.alpha"].contents() == 8.0
    names = {tensor.name for tensor in read.tensors}
    assert {"blk.0.attn_q.weight.lora_a", "blk.1.ffn_down.weight.lora_b"} <= names
    assert len(names) == 2 * len(ALL_LINEAR) * CONFIG.n_layers


@pytest.mark.slow
@pytest.mark.parametrize("how", ["merged", "beside", "base"])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_llama_cpp_writes_what_we_do(kind: str, how: str, tmp_path: Path) -> None:
    """Greedy text at F16: the merged file, the adapter beside its base, and the base alone."""
    model = tmp_path / "model"
    write_model(model) if kind == "bytes" else write_meta_model(model)
    write_adapter(tmp_path / "adapter", targets=ALL_LINEAR, size=0.1)
    adapter = tmp_path / "adapter" if how != "base" else None
    common: dict[str, Any] = {"model": str(model), "dtype": "float16"}
    merged = adapter if how == "merged" else None
    exported(tmp_path, tmp_path / "gguf", "gguf", adapter=merged, **common)
    lora = None
    if how == "beside":
        lora = exported(tmp_path, tmp_path / "lora", "gguf-lora", model=str(model))["adapter.gguf"]
    with serving(tmp_path / "gguf" / "model.gguf", lora) as address:
        tokens = 0
        for prompt in ("Once upon", "a 12 b", "the he"):
            expected = greedy(str(model), adapter, prompt, 24)
            assert completion(address, prompt, 24)[: len(expected)] == expected
            tokens += len(expected)
    assert tokens > 20


@pytest.mark.slow
def test_llama_cpp_writes_the_golden_story(tmp_path: Path) -> None:
    """stories260k through GGUF, and through Meta's layout in 4 shards before that."""
    folder = outside("stories260k")
    golden = (folder / "golden.txt").read_text()
    plain: dict[str, Any] = {"adapter": None, "dtype": "float16"}
    exported(tmp_path, tmp_path / "meta", "meta", model=str(folder), shards=4, **plain)
    exported(tmp_path, tmp_path / "gguf", "gguf", model=str(tmp_path / "meta"), **plain)
    with serving(tmp_path / "gguf" / "model.gguf") as address:
        tokens = completion(address, "Once upon a time", 60)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    text = tokenizer.decode([*tokenizer.encode("Once upon a time"), *tokens])
    assert golden.startswith(text) and len(tokens) == 60


@pytest.mark.long
def test_llama_cpp_and_transformers_write_what_smollm2_does(tmp_path: Path) -> None:
    """In F16, which holds nearly all of what the quantised file does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain: dict[str, Any] = {"adapter": None, "model": "smollm2-135m"}
    exported(tmp_path, tmp_path / "gguf", "gguf", **plain)
    exported(tmp_path, tmp_path / "hf", "hf", **plain)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    with serving(tmp_path / "gguf" / "model.gguf") as address:
        for prompt in ("The capital of France is", "Water boils at", "def add(a, b):\n"):
            expected = greedy("smollm2-135m", None, prompt, 16)
            assert completion(address, prompt, 16)[: len(expected)] == expected
            ids = tokenizer(prompt, return_tensors="pt")
            found = theirs.generate(**ids, max_new_tokens=16, do_sample=False)[0].tolist()
            assert found[ids["input_ids"].shape[1] :][: len(expected)] == expected


def test_a_padding_token_without_a_row_stays_out_of_gguf(sound: Path, tmp_path: Path) -> None:
    """Beside a model of as many rows as its tokenizer had before `[PAD]`; hf keeps the files."""
    model = write_model(tmp_path / "model", replace(CONFIG, vocab_size=261))
    description = byte_description()
    pad = {**description["added_tokens"][0], "id": 261, "content": "[PAD]"}
    description["added_tokens"].append(pad)
    write_tokenizer_json(model, description, pad_token="[PAD]")
    plain: dict[str, Any] = {"model": str(model), "adapter": None}
    files = exported(sound, tmp_path / "gguf", "gguf", **plain)
    assert len(gguf.GGUFReader(files["model.gguf"]).fields["tokenizer.ggml.tokens"].data) == 261
    files = exported(sound, tmp_path / "hf", "hf", **plain)
    assert "[PAD]" in files["tokenizer.json"].read_text()


def test_a_wrong_order_of_rows_is_found_and_nothing_is_left(sound, tmp_path, monkeypatch) -> None:
    """The proof fails where the writer is wrong: here rows of wq and wk stay in halves."""
    from llama.weights import rotary

    monkeypatch.setattr(rotary, "halves_to_interleaved", lambda tensor, head_dim: tensor)
    for format_ in ("meta", "gguf", "gguf-lora"):
        with pytest.raises(TrainingError, match="gives other logits"):
            exported(sound, tmp_path / "out", format_)
        assert list(tmp_path.iterdir()) == []
    exported(sound, tmp_path / "out", "meta", verify=False)


def test_an_answer_that_would_not_end_is_found(sound, tmp_path, monkeypatch) -> None:
    from llama.weights.huggingface_writer import HuggingFaceWriter

    monkeypatch.setattr(HuggingFaceWriter, "_stops", lambda *_: [])
    with pytest.raises(TrainingError, match=r"no more with \[1, 3\]"):
        exported(sound, tmp_path / "out", "hf")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_interrupted_leaves_nothing(sound, tmp_path, monkeypatch) -> None:
    from llama.commands.export import command

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "prove", interrupted)
    for format_ in ("hf", "meta", "gguf"):
        with pytest.raises(KeyboardInterrupt):
            exported(sound, tmp_path / "out", format_)
        assert list(tmp_path.iterdir()) == []
