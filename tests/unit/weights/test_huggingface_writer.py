"""What is written in Hugging Face's layout is a model of theirs, and ours again bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama.model.config import ModelConfig
from llama.model.scaling import DynamicScaling, LinearScaling, YarnScaling
from llama.tokenizer.identity import tokenizer_hash
from llama.tokenizer.load import load_tokenizer
from llama.weights import huggingface_writer
from llama.weights.fields import Fields
from llama.weights.huggingface import HuggingFaceReader
from llama.weights.open_model import ModelSource, open_model
from llama.weights.rope_fields import scaling_of, written_scaling
from llama.weights.tokenizer_beside import files_beside
from llama.weights.writers import WRITERS
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import (
    LLAMA31_SCALING,
    TINY,
    of_no_files,
    random_state,
    tied,
    transformers_model,
)
from tests.support.tiny_runs import CONFIG, META_CONFIG, write_meta_model, write_model
from tests.support.tokenizer_files import smollm2, smollm2_gguf
from tests.support.written_models import assert_came_back, written

CONFIGS = {
    "plain": TINY,
    "tied": tied(TINY),
    "biases": replace(TINY, attention_bias=True, mlp_bias=True),
    "llama3": replace(TINY, rope_scaling=LLAMA31_SCALING, rope_theta=500000.0),
    "linear": replace(TINY, rope_scaling=LinearScaling(4.0)),
    "yarn": replace(TINY, rope_scaling=YarnScaling(4.0, 32, 1.2, truncate=False)),
}


def write(folder: Path, config: ModelConfig, source: ModelSource, dtype: torch.dtype) -> list[str]:
    writer = WRITERS["huggingface"](folder, config, source, None)
    return written(writer, config, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_our_reader_gives_it_back_bit_for_bit(config, dtype, tmp_path: Path) -> None:
    write(tmp_path / "model", config, of_no_files(config), dtype)
    assert_came_back(HuggingFaceReader(tmp_path / "model"), config, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_transformers_loads_it_and_gives_the_same_logits(config, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    write(folder, config, of_no_files(config), torch.float32)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    from llama.model.documents import Documents
    from llama.model.transformer import Transformer

    ours = Transformer(config)
    ours.load_state_dict(random_state(config, seed=3), strict=False)
    tokens = torch.arange(40) * 7 % config.vocab_size
    with torch.no_grad():
        found = ours.eval()(tokens, torch.arange(40), Documents((0, 40)))
        expected = model.eval()(tokens[None]).logits[0]
    assert_close(found, expected, SMALL_MODEL)


def test_a_large_model_is_several_files_with_an_index(tmp_path, monkeypatch) -> None:
    """The last of them the same as any; one that is larger than a file may be has its own."""
    monkeypatch.setattr(huggingface_writer, "FILE_BYTES", 40_000)
    folder = tmp_path / "model"
    write(folder, TINY, of_no_files(TINY), torch.float32)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 5
    for number, file in enumerate(files, start=1):
        assert file.name == f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 40_000
    reader = HuggingFaceReader(folder)
    for name, value in random_state(TINY, seed=3).items():
        assert torch.equal(reader.read(name), value)


def test_what_lies_beside_the_source_comes_with_it(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "notes.txt").write_text("not of the model")
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 3], "top_p": 0.5}')
    assert write(tmp_path / "model", CONFIG, open_model(str(source)), torch.bfloat16) == []
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {path.name for path in source.iterdir()} - {"notes.txt"}
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (source / name).read_bytes()
    assert '"bfloat16"' in (tmp_path / "model" / "config.json").read_text()
    assert open_model(str(tmp_path / "model")).tokenizer_path == tmp_path / "model"


@pytest.mark.parametrize("listed", [1, [1], None])
def test_transformers_ends_an_answer_where_generate_does(listed: Any, tmp_path: Path) -> None:
    """Many a base names EOS alone in generation_config.json, and not the end of a turn."""
    source = write_model(tmp_path / "source")
    beside = {"_from_model_config": True, "eos_token_id": listed, "top_p": 0.5}
    (source / "generation_config.json").write_text(json.dumps(beside))
    (hint,) = write(tmp_path / "model", CONFIG, open_model(str(source)), torch.float32)
    assert "<|im_end|> (3)" in hint
    found = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert found == {"eos_token_id": [1, 3], "top_p": 0.5}


def test_from_meta_s_layout_the_tokenizer_comes_with_what_transformers_needs(
    tmp_path: Path,
) -> None:
    source = write_meta_model(tmp_path / "source")
    assert write(tmp_path / "model", META_CONFIG, open_model(str(source)), torch.float32) == []
    written = open_model(str(tmp_path / "model"))
    assert written.config == META_CONFIG
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(source / "tokenizer.model")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "Answer with  several words, and 1234 numbers.\n"
    ids = [*tokenizer.text_begins, *tokenizer.encode(text)]
    assert theirs(text)["input_ids"] == ids
    assert load_tokenizer(tmp_path / "model").encode(text) == tokenizer.encode(text)


def test_of_a_gguf_file_the_tokenizer_s_files_are_made(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = smollm2_gguf()
    files, hints = files_beside(path, None, for_transformers=True)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert hints == []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    made = load_tokenizer(tmp_path)
    assert tokenizer_hash(made) == tokenizer_hash(smollm2())
    assert made.chat_templates == smollm2().chat_templates
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("Name 12 fruits.")["input_ids"] == smollm2().encode("Name 12 fruits.")


def test_another_template_goes_where_programs_look_for_one(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    files, _ = files_beside(source, "{{ other }}", for_transformers=True)
    assert files["chat_template.jinja"] == b"{{ other }}"
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == "{{ other }}"
    assert not any(name.startswith("additional_chat_templates") for name in files)


def test_a_writer_that_is_abandoned_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write(folder, TINY, of_no_files(TINY), torch.float32)
    before = (folder / "model.safetensors").read_bytes()
    writer = WRITERS["huggingface"](folder, TINY, of_no_files(TINY), None)
    writer.add("tok_embeddings.weight", torch.zeros(TINY.vocab_size, TINY.dim))
    writer.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        LinearScaling(2.0),
        DynamicScaling(2.0),
        LLAMA31_SCALING,
        YarnScaling(4.0, 64, 1.0, 16.0, 2.0),
    ],
)
def test_a_rope_scaling_is_read_as_it_was_written(scaling) -> None:
    fields = Fields(written_scaling(scaling) or {}, "rope_scaling")
    assert scaling_of(fields, 128) == scaling and not fields.problems and not fields.unread()


def test_the_rows_of_their_model_are_in_one_order(tmp_path: Path) -> None:
    """The test's own model is transformers', built without our writer."""
    write(tmp_path / "model", TINY, of_no_files(TINY), torch.float32)
    theirs = transformers_model(TINY, random_state(TINY, seed=3).__getitem__).state_dict()
    ours = load_file(tmp_path / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
