"""Every kind of tokenizer file is known by what it holds, and a bad one is one UserError line."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from llama.errors import UserError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from tests.support.skips import outside
from tests.support.tokenizer_files import (
    bundled_texts,
    byte_description,
    byte_tokenizer,
    gguf_of,
    smollm2,
    write_gguf,
    write_ranks,
    write_sentencepiece,
    write_tokenizer_json,
)

TEXTS = [
    "Hello world",
    "h\u00e9llo \u4e16\u754c \U0001f600",
    "  two  spaces\n\n\ttab 2024",
    "<s></s>",
]


def assert_refused(path: Path, *said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    assert len(caught.value.problems) == 1
    line = caught.value.problems[0]
    assert "\n" not in line
    assert str(path) in line
    for word in said:
        assert word in line


@pytest.fixture(params=["json", "gguf", "tiktoken", "sentencepiece", "llama2", "smollm2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    kind = request.param
    if kind == "json":
        return byte_tokenizer(tmp_path)
    if kind == "gguf":
        return load_tokenizer(write_gguf(tmp_path / "x", **gguf_of(byte_description())))
    if kind == "tiktoken":
        return load_tokenizer(write_ranks(tmp_path / "x"))
    if kind == "sentencepiece":
        return load_tokenizer(write_sentencepiece(tmp_path / "x"))
    return load_tokenizer(outside("llama_tokenizer.model")) if kind == "llama2" else smollm2()


@pytest.mark.parametrize("text", TEXTS)
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encode_of_nothing_is_nothing(tokenizer: Tokenizer) -> None:
    for follows in ("nothing", "special", "text"):
        assert tokenizer.encode("", follows) == []


def test_control_text_is_never_interpreted(tokenizer: Tokenizer) -> None:
    control = set(tokenizer.special_tokens.values())
    assert len(control) >= 2
    for token in tokenizer.special_tokens:
        for text in (token, f"a {token} b", token * 3):
            for follows in ("nothing", "special", "text"):
                assert not control.intersection(tokenizer.encode(text, follows)), token
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_give_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("he")
    assert tokenizer.bos_id is not None
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == "he"
    assert tokenizer.decode([*ids, tokenizer.vocab_size]) == "he", "a padded embedding's id"


def test_eos_stops_and_has_a_name(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id in tokenizer.stop_ids
    assert tokenizer.eos_id in tokenizer.special_tokens.values()
    assert max(tokenizer.special_tokens.values()) < tokenizer.vocab_size


def test_smollm2_facts() -> None:
    tokenizer = smollm2()
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)
    assert tokenizer.special_tokens["<|im_end|>"] == 2
    assert list(tokenizer.chat_templates) == ["default"]
    (spaces,), (two,), (four,) = map(tokenizer.encode, ("  ", "2", "4"))
    assert tokenizer.encode("  24") == [spaces, two, four], "digits are parted first"


def test_sentencepiece_golden_text(trimming: Path) -> None:
    """The model's own published text; for want of one, what it was trained on."""
    tokenizer = load_tokenizer(trimming / "tokenizer.model")
    golden = trimming / "golden.txt"
    texts = [golden.read_text()] if golden.exists() else bundled_texts()
    texts = [text for text in texts if "  " not in text]  # such a model makes them one
    assert tokenizer.vocab_size == 512
    for text in map(str.strip, texts):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_text_that_goes_on_gets_no_space(llama2: Tokenizer) -> None:
    assert llama2.encode("Hello there") == llama2.encode("Hello") + llama2.encode(" there", "text")
    assert llama2.encode("Hello", "text") != llama2.encode("Hello")


def test_trimming_sentencepiece_keeps_the_space_between_words(trimming: Path) -> None:
    tokenizer = load_tokenizer(trimming)
    both = tokenizer.encode("Once upon")
    assert both == tokenizer.encode("Once") + tokenizer.encode(" upon", "text")


def test_sentencepiece_chat_pieces_are_control(llama2_model: Path, tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(llama2_model.read_bytes())
    first = len(proto.pieces)
    proto.pieces.add(piece="<|im_end|>", score=0, type=4)  # USER_DEFINED
    proto.pieces.add(piece="\t\t", score=0, type=4)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    tokenizer = load_tokenizer(path)
    assert tokenizer.special_tokens["<|im_end|>"] == first
    assert first in tokenizer.stop_ids
    assert first not in tokenizer.encode("x<|im_end|>")
    assert first + 1 in tokenizer.encode("x\t\ty")


def test_gguf_of_sentencepiece_kind_equals_its_model(
    llama2_model: Path, llama2: Tokenizer, tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceProcessor

    real = SentencePieceProcessor(model_file=str(llama2_model))
    ids = range(real.vocab_size())
    kinds = [(2, real.IsUnknown), (3, real.IsControl), (6, real.IsByte)]
    path = write_gguf(
        tmp_path / "model.gguf",
        model="llama",
        tokens=[real.IdToPiece(i) for i in ids],
        scores=[float(real.GetScore(i)) for i in ids],
        token_type=[next((kind for kind, is_ in kinds if is_(i)), 1) for i in ids],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    for text in TEXTS:
        for follows in ("nothing", "special", "text"):
            assert tokenizer.encode(text, follows) == llama2.encode(text, follows)
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_json_settings_beside_it(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    (tmp_path / "chat_template.jinja").write_text("from the file")
    named = [{"name": "default", "template": "from the list"}]
    tokenizer = byte_tokenizer(tmp_path, bos_token={"content": "<s>"}, chat_template=named)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.stop_ids == {1, 3}
    assert tokenizer.chat_templates == {"default": "from the file"}
    (tmp_path / "chat_template.jinja").unlink()
    assert load_tokenizer(tmp_path).chat_templates == {"default": "from the list"}


def test_eos_from_generation_config_alone(tmp_path: Path) -> None:
    path = write_tokenizer_json(tmp_path, bos_token=None, eos_token=None)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
    tokenizer = load_tokenizer(path)
    assert tokenizer.bos_id is None
    assert tokenizer.eos_id == 3


def test_truncation_and_padding_in_tokenizer_json_are_off(tmp_path: Path) -> None:
    description = byte_description()
    description["truncation"] = {
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    description["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }
    tokenizer = load_tokenizer(write_tokenizer_json(tmp_path, description))
    assert len(tokenizer.encode("abcdef")) == 6
    assert len(tokenizer.encode("a")) == 1


def test_chat_tokens_not_marked_special_are_control(tmp_path: Path) -> None:
    description = byte_description()
    for token in description["added_tokens"]:
        token["special"] = False
    tokenizer = load_tokenizer(write_tokenizer_json(tmp_path, description))
    assert tokenizer.special_tokens["<|im_end|>"] == 3
    assert 3 not in tokenizer.encode("<|im_end|>")


def test_folder(tmp_path: Path) -> None:
    assert_refused(tmp_path, "tokenizer.json")
    write_gguf(tmp_path / "a.gguf", **gguf_of(byte_description()))
    assert load_tokenizer(tmp_path).vocab_size == 261
    write_gguf(tmp_path / "b.gguf", **gguf_of(byte_description()))
    assert_refused(tmp_path, "several GGUF files")
    write_ranks(tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path).vocab_size == 128_256
    write_tokenizer_json(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == 261


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.gguf").write_bytes(write_tokenizer_json(tmp_path).read_bytes())
    (tmp_path / "tokenizer.json").write_bytes(write_ranks(tmp_path / "r").read_bytes())
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="end-of-sequence"):
        load_tokenizer(tmp_path / "tokenizer.gguf")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert load_tokenizer(tmp_path / "tokenizer.gguf").vocab_size == 261
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_size == 128_256


def test_tiktoken_takes_long_runs(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_ranks(tmp_path / "x"))
    for text in ("a" * 60_000, " " * 60_000, "ab c " * 100_000):
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"hello, this is a poem", "not a tokenizer"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"{", "JSON"),
        (b"{}", "no `model`"),
        (b'{"model": 3}', "not a usable tokenizer"),
        (b'{"model": {"type": "BPE"}, "added_tokens": 7}', "not a usable tokenizer"),
        (b'{"model": {}, "added_tokens": [{"id": 1}]}', "not a usable tokenizer"),
        (b"{" + b'"a":[' * 20000, "JSON"),
        (b"[1, 2]", "not a tokenizer"),
        (b"aGVsbG8= 0\n", "ranks"),
        (b"aGVsbG8= 0\nnot base64!\n", "line 2"),
        (b"GGUF", "GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "GGUF"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "kind None"),
    ],
)
def test_not_a_tokenizer(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    assert_refused(path, said)


def test_missing_file_suggests_a_sibling(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert_refused(tmp_path / "tokeniser.json", "did you mean", "tokenizer.json")
    assert_refused(tmp_path / "none" / "x", "does not exist")
    assert_refused(tmp_path / ("n" * 300), "cannot be read")


def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert_refused(tmp_path / "pipe", "not a regular file")


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(b"\x01\xff")
        file.truncate(1 << 40)
    assert_refused(path, "too many")


def test_no_eos_is_refused(tmp_path: Path) -> None:
    assert_refused(write_tokenizer_json(tmp_path / "a", eos_token=None), "end-of-sequence")
    bad = gguf_of(byte_description())
    del bad["eos_token_id"]
    assert_refused(write_gguf(tmp_path / "c.gguf", **bad), "end-of-sequence")


def test_malformed_files_beside_it(tmp_path: Path) -> None:
    path = write_tokenizer_json(tmp_path)
    for content in ("{", "[]", '{"a": "\udcff"}'):
        config = tmp_path / "tokenizer_config.json"
        config.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=r"tokenizer_config\.json"):
            load_tokenizer(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre": "qwen2"}, "qwen2"),
        ({"model": "bert"}, "bert"),
        ({"tokens": ["a"]}, "types"),
        ({"tokens": ["a"] * 261}, "twice"),
        ({"merges": ["h"]}, "not a usable"),
        ({"merges": ["q zzz"]}, "not a usable"),
        ({"eos_token_id": 999}, "damaged"),
        ({"merges": "he"}, "not a usable"),
        ({"chat_template": 7}, "chat template"),
    ],
)
def test_gguf_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    assert_refused(write_gguf(tmp_path / "x", **gguf_of(byte_description(), **change)), said)
    with pytest.raises(UserError, match=r"--tokenizer|download"):
        load_tokenizer(tmp_path / "x")


def test_gguf_metadata_equals_the_package_gguf(tmp_path: Path) -> None:
    import gguf

    from llama.files.gguf_header import read_metadata

    path = write_gguf(
        tmp_path / "x",
        **gguf_of(byte_description(), add_bos_token=True, scores=[0.5, -1.0], chat_template="t"),
    )
    fields = gguf.GGUFReader(path).fields
    expected = {k: v.contents() for k, v in fields.items() if not k.startswith("GGUF.")}
    assert read_metadata(path) == expected
    assert json.dumps(expected)
