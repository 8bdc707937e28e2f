"""What is written in Meta's layout is ours again bit for bit, and torch's own file."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama.errors import UserError
from llama.files.torch_archive import TorchArchive
from llama.model.config import ModelConfig
from llama.model.presets import PRESETS
from llama.model.scaling import LinearScaling, Llama3Scaling
from llama.weights.meta import MetaReader
from llama.weights.meta_config import complete, params_document, read_params
from llama.weights.meta_writer import MetaWriter
from tests.support.model_files import (
    LLAMA31_SCALING,
    TINY,
    cut_meta,
    interleaved_state,
    of_no_files,
    random_state,
    tied,
)
from tests.support.written_models import assert_came_back, written

CONFIGS = {
    "plain": TINY,
    "tied": tied(TINY),
    "another width": replace(TINY, ffn_dim=200),
    "biases": replace(TINY, attention_bias=True, mlp_bias=True),
    "llama3": replace(TINY, rope_scaling=LLAMA31_SCALING, rope_theta=500000.0),
    "other factors": replace(TINY, rope_scaling=Llama3Scaling(32.0, 1.0, 6.0, 8192)),
}


def write(folder: Path, config: ModelConfig, shards: int, dtype: torch.dtype) -> list[str]:
    source = of_no_files(config)
    writer = MetaWriter(folder, config, source, None)
    writer.shards = shards
    return written(writer, config, dtype)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_our_reader_gives_it_back_bit_for_bit(config, shards: int, tmp_path: Path) -> None:
    dtype = (torch.float32, torch.bfloat16, torch.float16)[shards % 3]
    write(tmp_path / "model", config, shards, dtype)
    assert_came_back(MetaReader(tmp_path / "model"), config, dtype)


def test_each_shard_is_what_meta_s_cut_gives(tmp_path: Path) -> None:
    """Against a cut that the tests make by themselves, read by torch, mapped and not."""
    write(tmp_path / "model", TINY, 2, torch.float32)
    parts = cut_meta(interleaved_state(TINY, random_state(TINY, seed=3)), 2, 1)
    for shard, part in enumerate(parts):
        for mapped in (False, True):
            file = tmp_path / "model" / f"consolidated.{shard:02}.pth"
            found = torch.load(file, weights_only=True, mmap=mapped)
            assert found.keys() == part.keys()
            assert all(torch.equal(found[name], part[name]) for name in part)


def test_a_tied_matrix_has_both_names_in_every_shard(tmp_path: Path) -> None:
    """For Meta's own code, which knows no tying: the output matrix is cut by rows, the embedding of
    a small vocabulary by columns."""
    write(tmp_path / "model", tied(TINY), 2, torch.float32)
    whole = random_state(tied(TINY), seed=3)["tok_embeddings.weight"]
    for shard in range(2):
        found = torch.load(tmp_path / "model" / f"consolidated.{shard:02}.pth", weights_only=True)
        assert torch.equal(found["output.weight"], whole.chunk(2, 0)[shard])
        assert torch.equal(found["tok_embeddings.weight"], whole.chunk(2, 1)[shard])


@pytest.mark.parametrize("name", PRESETS)
def test_params_json_of_a_release_gives_its_sizes(name: str, tmp_path: Path) -> None:
    """Biases and tying show in the tensors alone."""
    config = PRESETS[name]
    (tmp_path / "params.json").write_text(json.dumps(params_document(config)))
    fields, read = read_params(tmp_path / "params.json")
    assert fields.problems == []
    assert complete(fields, replace(read, tied_embedding=config.tied_embedding)) == config


def test_the_positions_are_not_in_params_json(tmp_path: Path) -> None:
    """Meta's own `Llama.build` gives `ModelArgs` a max_seq_len besides those of `params.json`."""
    write(tmp_path / "model", TINY, 1, torch.float32)
    params = json.loads((tmp_path / "model" / "params.json").read_text())
    assert dict(max_seq_len=64, max_batch_size=1, **params)["max_seq_len"] == 64
    beside = tmp_path / "model" / "positions.json"
    assert json.loads(beside.read_text()) == {"max_seq_len": TINY.max_seq_len}
    reader = MetaReader(tmp_path / "model")
    assert reader.config == TINY and beside in reader.files
    beside.write_text('{"max_seq_len": 0}')
    with pytest.raises(UserError, match=r"positions.json: max_seq_len must be a positive"):
        MetaReader(tmp_path / "model")
    beside.unlink()
    assert MetaReader(tmp_path / "model").config.max_seq_len == 2048, "as Meta's own code has it"
    (tmp_path / "model" / "params.json").write_text(json.dumps(params | {"max_seq_len": 99}))
    assert MetaReader(tmp_path / "model").config.max_seq_len == 99, "as earlier versions wrote it"


def test_what_meta_has_no_words_for_is_named() -> None:
    narrow = replace(TINY, head_dim=16)
    assert "head dimension of 16" in MetaWriter.misfits(narrow)[0]
    assert "rotary scaling" in MetaWriter.misfits(replace(TINY, rope_scaling=LinearScaling(2.0)))[0]
    (line,) = MetaWriter.shard_problems(TINY, 8)
    assert "key/value heads, 4" in line


def test_an_archive_is_aligned_and_its_checksums_are_right(tmp_path: Path) -> None:
    """So that it can be used where it is mapped, and zipfile reads it."""
    path = tmp_path / "file.pth"
    archive = TorchArchive(path, {"a": (3,), "b": (2, 5)}, torch.bfloat16, {"again": "a"})
    a, b = torch.arange(3).bfloat16(), torch.randn(2, 5).bfloat16()
    archive.add("a", a)
    archive.add("b", b)
    archive.finish()
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(loaded["a"], a) and torch.equal(loaded["b"], b)
    assert loaded["again"].data_ptr() == loaded["a"].data_ptr()
    assert all(loaded[name].data_ptr() % 64 == 0 for name in loaded)
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
