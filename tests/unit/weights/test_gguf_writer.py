"""What is written as GGUF is ours again, and the same to the package `gguf`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from llama.model.config import ModelConfig
from llama.model.scaling import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from llama.tokenizer.identity import tokenizer_hash
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.writing import rows_problem
from llama.weights.gguf import GGUFReader
from llama.weights.gguf_writer import GGUFFileWriter, named_tokenizer
from llama.weights.names import to_gguf
from tests.support.closeness import assert_close
from tests.support.model_files import (
    LLAMA31_SCALING,
    interleaved_state,
    of_no_files,
    random_state,
    tied,
)
from tests.support.tiny_runs import CONFIG
from tests.support.tokenizer_files import (
    byte_description,
    smollm2,
    smollm2_gguf,
    write_sentencepiece,
    write_tokenizer_json,
)
from tests.support.written_models import written

CONFIGS = {
    "plain": CONFIG,
    "tied": tied(CONFIG),
    "biases": replace(CONFIG, attention_bias=True, mlp_bias=True),
    "llama3": replace(CONFIG, rope_scaling=LLAMA31_SCALING, rope_theta=500000.0),
    "linear": replace(CONFIG, rope_scaling=LinearScaling(4.0)),
    "yarn": replace(CONFIG, rope_scaling=YarnScaling(4.0, 64, 1.25)),
    "odd rows": replace(CONFIG, ffn_dim=200),
}


def write(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    quantize: str | None = None,
    tokenizer: Path | None = None,
) -> Path:
    source = of_no_files(config)
    path = tokenizer or write_tokenizer_json(folder.with_name("tokenizer"))
    writer = GGUFFileWriter(folder, config, source, path)
    writer.quantize = quantize
    assert written(writer, config, dtype) == []
    return folder / "model.gguf"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_our_reader_gives_it_back(config, dtype, tmp_path: Path) -> None:
    reader = GGUFReader(write(tmp_path / "model", config, dtype))
    if isinstance(config.rope_scaling, YarnScaling):  # a float32 in the file, of a float64 here
        found = reader.config.rope_scaling
        assert isinstance(found, YarnScaling)
        assert_close(found.attention_factor, config.rope_scaling.attention_factor, 1e-6)
        scaling = replace(found, attention_factor=config.rope_scaling.attention_factor)
        assert replace(reader.config, rope_scaling=scaling) == config
    else:
        assert reader.config == config
    state = random_state(config, seed=3, dtype=dtype)
    assert reader.names() == set(state)
    for name, value in state.items():
        assert torch.equal(reader.read(name), value.float()), name
        assert reader.stored_type(name) == (dtype if value.dim() > 1 else torch.float32)


@pytest.mark.parametrize("config", [CONFIG, CONFIGS["odd rows"]], ids=["plain", "odd rows"])
def test_the_package_gguf_dequantises_what_it_would_have_quantised(config, tmp_path) -> None:
    """By its own reader; rows that are no whole blocks stay in float32."""
    path = write(tmp_path / "model", config, torch.float32, "q8_0")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    state = interleaved_state(config, random_state(config, seed=3))
    assert found.keys() == {to_gguf(name) for name in state}
    for name, value in state.items():
        tensor = found[to_gguf(name)]
        blocks = value.dim() > 1 and value.shape[-1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if blocks else gguf.GGMLQuantizationType.F32
        assert tensor.tensor_type is kind
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), kind), kind)
        assert (data.reshape(value.shape) == expected).all(), name
        # a block rounds by half of 1/127 of its largest, and its scale to 11 bits
        assert_close(torch.tensor(data.reshape(value.shape)), value, 0.5 / 127 + 2**-11, name)


def test_the_tokenizers_of_gguf_come_back(tmp_path: Path) -> None:
    """Bytes, SmolLM2's digits and sentencepiece; rows without a token are none of its tokens."""
    bytes_ = write_tokenizer_json(tmp_path / "bytes")
    pieces = write_sentencepiece(tmp_path / "pieces" / "tokenizer.model", 512)
    for path, rows in ((bytes_, 264), (pieces, 520), (smollm2_gguf(), 49160)):
        config = replace(CONFIG, vocab_size=rows)
        file = write(tmp_path / f"of-{rows}", config, torch.float16, tokenizer=path)
        before, after = load_tokenizer(path), load_tokenizer(file)
        assert tokenizer_hash(before) == tokenizer_hash(after)
        assert (after.bos_id, after.stop_ids) == (before.bos_id, before.stop_ids)
        assert (after.text_begins, after.text_ends) == (before.text_begins, before.text_ends)
        assert after.chat_templates == before.chat_templates
        field = gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"]
        assert len(field.data) == rows
    assert 'PARAMETER stop "<|im_end|>"' in (tmp_path / "of-49160" / "Modelfile").read_text()


def test_a_tokenizer_json_of_sentencepiece_s_gives_way_to_the_model_beside_it(tmp_path) -> None:
    description = byte_description()
    description["model"]["byte_fallback"] = True
    write_tokenizer_json(tmp_path, description)
    assert named_tokenizer(tmp_path) == tmp_path
    write_sentencepiece(tmp_path / "tokenizer.model", 512)
    assert named_tokenizer(tmp_path) == tmp_path / "tokenizer.model"
    assert named_tokenizer(smollm2_gguf()) == smollm2_gguf() and smollm2().vocab_size


def test_tokens_without_a_row_are_left_out_by_name(tmp_path: Path) -> None:
    """As where `[PAD]` was added without resizing: llama.cpp takes a token for each row alone.
    Those of llama.cpp's two fields that it would not know by its text go first."""
    description = byte_description()
    rows = len(description["model"]["vocab"])
    flags = {**description["added_tokens"][0], "id": rows, "content": "[PAD]"}
    description["added_tokens"].append(flags)
    description["added_tokens"].append({**flags, "id": rows + 1, "content": "<|eot_id|>"})
    path = write_tokenizer_json(tmp_path / "padded", description, pad_token="[PAD]")
    config = replace(CONFIG, vocab_size=rows)
    writer = GGUFFileWriter(tmp_path / "out", config, of_no_files(config), path)
    (hint,) = written(writer, config, torch.float32)
    file = tmp_path / "out" / "model.gguf"
    assert hint.startswith(f"{file}: leaves out") and f"[PAD] ({rows}), <|eot_id|>" in hint
    fields = gguf.GGUFReader(file).fields
    assert len(fields["tokenizer.ggml.tokens"].data) == rows
    assert len(fields["tokenizer.ggml.token_type"].data) == rows
    ids = {f.contents() for name, f in fields.items() if name.endswith("_token_id")}
    assert ids == {0, 1, 3}, "BOS, EOS and <|im_end|>"
    assert load_tokenizer(file).stop_ids == {1, 3}
    assert "eot_id" not in (tmp_path / "out" / "Modelfile").read_text()


def test_tokens_that_gguf_cannot_do_without_are_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer_json(tmp_path))
    rows = tokenizer.vocab_size
    assert rows_problem(tokenizer, rows) is None
    assert rows_problem(tokenizer, rows - 1) == (
        f"needs he ({rows - 1}), and the model's embedding has {rows - 1} rows"
    )
    description = byte_description()
    flags = {**description["added_tokens"][0], "id": rows, "content": "<end>"}
    description["added_tokens"].append(flags)
    other = load_tokenizer(write_tokenizer_json(tmp_path / "2", description, eos_token="<end>"))
    assert "needs <end>" in str(rows_problem(other, rows))


def test_what_gguf_has_no_words_for_is_named() -> None:
    for scaling in (
        DynamicScaling(2.0),
        Llama3Scaling(8.0, 2.0, 4.0, 8192),
        YarnScaling(4.0, 64, 1.25, truncate=False),
    ):
        assert GGUFFileWriter.misfits(replace(CONFIG, rope_scaling=scaling))
    assert GGUFFileWriter.misfits(CONFIGS["llama3"]) == []
