"""The same weights read from each format are the same tensors, whole and by slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama.model.config import ModelConfig
from llama.weights.gguf import GGUFReader, rope_divisors
from llama.weights.huggingface import HuggingFaceReader
from llama.weights.meta import MetaReader
from llama.weights.open_model import open_model
from llama.weights.reader import FileReader, WeightReader
from llama.weights.rotary import halves_to_interleaved, interleaved_to_halves
from tests.support.closeness import assert_close, sums_of
from tests.support.model_files import (
    LLAMA31_SCALING,
    TINY,
    State,
    interleave,
    llama31_divisors,
    random_state,
    tied,
    transformers_model,
    write_gguf,
    write_huggingface,
    write_meta,
)
from tests.support.skips import outside
from tests.support.tokenizer_files import smollm2_gguf

BIASED = replace(TINY, attention_bias=True, mlp_bias=True)
SCALED = replace(TINY, rope_theta=500000.0, rope_scaling=LLAMA31_SCALING)
CONFIGS = {"plain": TINY, "tied": tied(TINY), "biased": BIASED, "scaled": SCALED}


def write_all(folder: Path, config: ModelConfig) -> tuple[State, dict[str, FileReader]]:
    """Every format and cut of the same weights."""
    state = write_huggingface(folder / "hf", config)
    write_huggingface(folder / "hf_parts", config, max_shard_size="60KB")
    write_gguf(folder / "model.gguf", config, state)
    readers: dict[str, FileReader] = {
        "hf": HuggingFaceReader(folder / "hf"),
        "hf_parts": HuggingFaceReader(folder / "hf_parts"),
        "gguf": GGUFReader(folder / "model.gguf"),
    }
    for shards, embedding_dim in ((1, 0), (2, 0), (2, 1), (4, 1)):
        name = f"meta_{shards}_{embedding_dim}"
        write_meta(folder / name, config, state, shards, embedding_dim)
        readers[name] = MetaReader(folder / name)
    return state, readers


@pytest.fixture(scope="module", params=CONFIGS)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelConfig, State, dict[str, FileReader]]:
    config = CONFIGS[request.param]
    return config, *write_all(tmp_path_factory.mktemp(request.param), config)


Written = tuple[ModelConfig, State, dict[str, FileReader]]


def test_several_files_were_written(written: Written) -> None:
    assert len(written[2]["hf_parts"].files) > 3


def test_sizes_are_the_same(written: Written) -> None:
    config, _, readers = written
    for name, reader in readers.items():
        assert reader.config == config, name


def test_whole_tensors_are_the_same(written: Written) -> None:
    _, state, readers = written
    for label, reader in readers.items():
        assert reader.names() == set(state), label
        for name, tensor in state.items():
            torch.testing.assert_close(
                reader.read(name), tensor, rtol=0, atol=0, msg=f"{label} {name}"
            )


@pytest.mark.parametrize(("start", "length"), [(0, 16), (16, 16), (8, 24), (3, 5), (31, 1)])
def test_slices_are_slices_of_the_whole(written: Written, start: int, length: int) -> None:
    _, state, readers = written
    for label, reader in readers.items():
        for name, tensor in state.items():
            for dim in range(tensor.dim()):
                part = reader.read(name, dim, start, length)
                assert torch.equal(part, tensor.narrow(dim, start, length)), (label, name, dim)


def test_shares_join_to_the_whole(written: Written) -> None:
    _, state, readers = written
    for label, reader in readers.items():
        for name, tensor in state.items():
            share = tensor.shape[0] // 4
            parts = [reader.read(name, 0, rank * share, share) for rank in range(4)]
            assert torch.equal(torch.cat(parts), tensor), (label, name)
            assert torch.equal(reader.read(name, 0, share), tensor[share:]), (label, name)


STEPS = {"Q8_0": 1 / 127, "Q4_1": 2 / 15, "F16": 2**-10, "BF16": 2**-7}
"""The distance between the numbers that each kind can hold, relative to the largest: of a block of
Q8_0 and Q4_1 it is the block's own."""


@pytest.mark.parametrize("kind", STEPS)
def test_quantised_slices_are_slices_of_the_dequantised_whole(tmp_path: Path, kind: str) -> None:
    state = random_state(TINY)
    write_gguf(tmp_path / "model.gguf", TINY, state, kind)
    reader = GGUFReader(tmp_path / "model.gguf")
    for name, tensor in state.items():
        whole = reader.read(name)
        assert whole.dtype == torch.float32
        # The nearest is half a step away; the step itself is kept in half precision.
        assert_close(whole, tensor, 0.55 * STEPS[kind], name)
        for dim in range(tensor.dim()):
            for start, length in ((0, 16), (16, 16), (5, 20)):
                part = reader.read(name, dim, start, length)
                assert torch.equal(part, whole.narrow(dim, start, length)), (name, dim)


def test_a_gguf_slice_costs_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama.weights.gguf as module

    write_gguf(tmp_path / "model.gguf", TINY, random_state(TINY), "Q8_0")
    reader = GGUFReader(tmp_path / "model.gguf")
    seen: list[int] = []
    plain: Callable = module.dequantize

    def counting(data, kind):
        seen.append(data.size)
        return plain(data, kind)

    monkeypatch.setattr(module, "dequantize", counting)
    whole_bytes = 64 * 192 // 32 * 34
    reader.read("layers.0.feed_forward.w1.weight", 0, 48, 48)
    reader.read("layers.0.feed_forward.w2.weight", 1, 64, 32)
    assert seen == [whole_bytes // 4, whole_bytes // 6]


def test_types_are_kept(tmp_path: Path) -> None:
    state = write_huggingface(tmp_path / "hf", TINY, dtype=torch.bfloat16)
    write_meta(tmp_path / "meta", TINY, random_state(TINY, dtype=torch.float16), 2)
    assert HuggingFaceReader(tmp_path / "hf").read("norm.weight").dtype == torch.bfloat16
    assert MetaReader(tmp_path / "meta").read("norm.weight").dtype == torch.float16
    assert torch.equal(
        HuggingFaceReader(tmp_path / "hf").read("output.weight"), state["output.weight"]
    )


def test_a_meta_file_older_than_archives(tmp_path: Path) -> None:
    state = random_state(TINY)
    write_meta(tmp_path, TINY, state)
    path = tmp_path / "consolidated.00.pth"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    reader = MetaReader(tmp_path)
    assert all(torch.equal(reader.read(name), state[name]) for name in state)


def test_the_two_rotary_layouts_are_inverse() -> None:
    rows = torch.arange(48.0).reshape(24, 2)
    assert torch.equal(halves_to_interleaved(rows, 8), interleave(rows, 8))
    assert torch.equal(interleaved_to_halves(interleave(rows, 8), 8), rows)
    assert torch.equal(interleaved_to_halves(interleave(rows[:, 0], 8), 8), rows[:, 0])


def test_llama31_divisors_are_llama_cpp_s() -> None:
    config = replace(SCALED, head_dim=128)
    expected = torch.from_numpy(llama31_divisors(config)).double()
    divisors = rope_divisors(config, LLAMA31_SCALING).double()
    torch.testing.assert_close(divisors, expected, rtol=sums_of(8), atol=0)  # all are positive
    assert 1 < len({round(float(value), 6) for value in divisors}) < 64


def test_llama31_divisors_are_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from tests.support.model_files import huggingface_config

    config = replace(SCALED, head_dim=128)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](huggingface_config(config), "cpu")
    plain = config.rope_theta ** -(torch.arange(0, 128, 2).double() / 128)
    ours = plain / rope_divisors(config, LLAMA31_SCALING)
    # Theirs is a power taken in float32, and then divided; all are positive.
    torch.testing.assert_close(ours, theirs.double(), rtol=sums_of(16), atol=0)


def test_fingerprint_changes_with_any_byte(tmp_path: Path) -> None:
    write_meta(tmp_path / "a", TINY, random_state(TINY), 2)
    write_meta(tmp_path / "b", TINY, random_state(TINY), 2)
    ours = MetaReader(tmp_path / "a").fingerprint()
    assert len(ours) == 64
    assert MetaReader(tmp_path / "a").fingerprint() == ours
    path = tmp_path / "b" / "consolidated.01.pth"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert MetaReader(tmp_path / "b").fingerprint() != ours


def greedy(reader: WeightReader, ids: list[int], steps: int) -> list[int]:
    """Continue `ids` with transformers' LLaMA on the weights of `reader`."""
    model = transformers_model(reader.config, reader.read)
    prompt = torch.tensor([ids])
    return model.generate(prompt, do_sample=False, max_new_tokens=steps)[0].tolist()


def test_a_real_meta_model_tells_its_published_story() -> None:
    from sentencepiece import SentencePieceProcessor

    folder = outside("stories260k")
    reader = MetaReader(folder)
    assert reader.config.parameter_count() == 260_032
    assert reader.config.tied_embedding
    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    text = tokenizer.decode(greedy(reader, [tokenizer.bos_id()], 60)[1:])
    golden = (folder / "golden.txt").read_text()
    assert len(text) > 100
    assert golden.startswith(text)


def test_the_bundled_gguf_model_knows_a_capital() -> None:
    import gguf

    smollm2_gguf()  # or the test is left out
    source = open_model("smollm2-135m")
    field = gguf.GGUFReader(source.files[0]).get_field("tokenizer.ggml.tokens")
    assert field is not None
    pieces: list[str] = field.contents()
    prompt = [pieces.index(piece) for piece in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]
    assert pieces[greedy(source.reader, prompt, 1)[-1]] == "ĠParis"
