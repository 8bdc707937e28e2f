"""What lies beside a tokenizer decides, or is named, or is refused: nothing is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama.errors import UserError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.segments import Segment, encode_segments, plain_text
from tests.support.tokenizer_files import (
    begin_with,
    byte_description,
    gguf_of,
    write_gguf,
    write_ranks,
    write_tokenizer_json,
)
from tests.support.tokenizer_folders import AS_IT_STANDS, LLAMA, decoder, llama3_config
from tests.support.trained_tokenizers import (
    byte_level,
    sentencepiece_metadata,
    sentencepiece_model,
    write_folder,
)

SIZE = 440
CHATML_TOKENS = {"<|im_start|>": SIZE, "<|im_end|>": SIZE + 1}


def pieces(folder: Path, config: dict[str, Any] | None = None, **files: Any) -> Tokenizer:
    """The sentencepiece tokenizer with LLaMA's class and `config`; None: without any config."""
    if config is not None:
        files["tokenizer_config"] = {**LLAMA, "add_bos_token": False, **config}
    return load_tokenizer(write_folder(folder / str(len(list(folder.iterdir()))), MODEL, **files))


MODEL = sentencepiece_model()


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_nothing_to_say_is_nothing_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces(tmp_path, {"legacy": True, "model_input_names": ["x"], "padding_side": "left"})
    write_tokenizer_json(tmp_path / "json", tokenizer_class="PreTrainedTokenizerFast")
    load_tokenizer(tmp_path / "json")
    load_tokenizer(write_gguf(tmp_path / "x", **gguf_of(byte_description())))
    assert said(capsys) == []


@pytest.mark.parametrize("file", ["added_tokens", "decoder"])
def test_tokens_beside_a_sentencepiece_model(tmp_path: Path, file: str) -> None:
    if file == "decoder":
        tokenizer = pieces(
            tmp_path, {"added_tokens_decoder": decoder(SIZE), "eos_token": "<|im_end|>"}
        )
    else:
        tokenizer = pieces(tmp_path, {"eos_token": "<|im_end|>"}, added_tokens=CHATML_TOKENS)
    assert CHATML_TOKENS.items() <= tokenizer.special_tokens.items()
    assert tokenizer.eos_id == SIZE + 1
    assert tokenizer.vocab_size == SIZE + (7 if file == "decoder" else 2)
    assert tokenizer.template_variables["eos_token"] == "<|im_end|>"
    assert plain_text("a<|im_end|>", tokenizer)[-1] == SIZE + 1
    assert SIZE + 1 not in tokenizer.encode("a<|im_end|>")


def test_a_token_that_is_not_special_is_found_in_texts(tmp_path: Path) -> None:
    tokenizer = pieces(tmp_path, {"legacy": True}, added_tokens={"<tool>": SIZE})
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert tokenizer.encode("a<tool>b") == [*a, SIZE, *b]
    assert tokenizer.decode([*a, SIZE]) == "a<tool>"
    assert "<tool>" not in tokenizer.special_tokens
    not_legacy = pieces(tmp_path, {}, added_tokens={"<tool>": SIZE})
    assert not_legacy.encode("a<tool>b") == [*a, SIZE, *tokenizer.encode("b", "text")]


def test_single_words_and_spaces_of_added_tokens(tmp_path: Path) -> None:
    flags = {"special": False, "single_word": True, "lstrip": True, "rstrip": True}
    given = {str(SIZE): {"content": "tool", **flags}}
    tokenizer = pieces(tmp_path, {"added_tokens_decoder": given})
    assert SIZE not in tokenizer.encode("a toolbox")
    assert tokenizer.encode("a \n tool\tb") == [
        *tokenizer.encode("a"),
        SIZE,
        *tokenizer.encode("b", "text"),
    ]


def test_control_tokens_take_the_white_space_that_they_are_to_take(tmp_path: Path) -> None:
    given = {"added_tokens_decoder": decoder(SIZE, rstrip=True)}
    tokenizer = pieces(tmp_path, given)
    end = Segment(SIZE + 1)
    whole = [Segment("a \n"), end, Segment(" \n"), Segment("\n b "), end]
    ids, _ = encode_segments(whole, tokenizer)
    wanted = [*tokenizer.encode("a \n"), SIZE + 1, *tokenizer.encode("b ", "special"), SIZE + 1]
    assert ids == wanted


@pytest.mark.parametrize(
    ("config", "files", "line"),
    [
        ({}, {"added_tokens": {"<x>": SIZE + 9}}, f"the id {SIZE + 9}, where .* gives it {SIZE}"),
        ({}, {"added_tokens": {"<x>": 5}}, "'<x>' the id 5"),
        ({}, {"added_tokens": ["<x>"]}, "added_tokens.json: must hold one JSON object"),
        ({}, {"added_tokens": {"<x>": "y"}}, "added_tokens.json: must hold texts and their ids"),
        ({"eos_token": "<none>"}, {}, "EOS token '<none>' is not in the vocabulary"),
        ({"tokenizer_class": "T5Tokenizer"}, {}, "its class is T5Tokenizer"),
        ({"tokenizer_class": 5}, {}, "`tokenizer_class` must be text"),
        ({"add_bos_token": "no"}, {}, "`add_bos_token` must be true or false"),
        ({"split_special_tokens": True}, {}, "`split_special_tokens` is true"),
        ({"fast_tokenizer_files": ["tokenizer.4.json"]}, {}, "tokenizer.4.json"),
        ({"chat_template": 5}, {}, "its chat template is no text"),
        ({"chat_template": [{"name": "a"}]}, {}, "its chat template is no text"),
        ({"added_tokens_decoder": {"5": "x"}}, {}, "not as transformers writes them"),
        (
            {"added_tokens_decoder": {str(SIZE): {"content": "<|x|>", "single_word": True}}},
            {},
            "marked `single_word`",
        ),
    ],
)
def test_refused(tmp_path: Path, config: Any, files: Any, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        pieces(tmp_path, config, **files)
    assert len(caught.value.problems) == 1
    assert str(tmp_path) in caught.value.problems[0]


@pytest.mark.parametrize(
    ("config", "files", "line"),
    [
        ({"tokenizer_file": "/a/b", "do_lower_case": True}, {}, "do_lower_case, tokenizer_file"),
        ({"add_bos_token": None}, {}, "says nothing of `add_bos_token`"),
        ({"tokenizer_class": None}, {}, "names no `tokenizer_class`"),
        ({"pad_token": "[PAD]"}, {}, f"they get the next: \\[PAD\\] {SIZE}"),
        (
            {"added_tokens_decoder": decoder(SIZE)},
            {"special_tokens_map": {"bos_token": "<s>", "eos_token": "<unk>"}},
            "special_tokens_map.json: not used, .*: eos_token",
        ),
        ({"chat_template": "a"}, {"chat_template": {}}, "chat_template.json: not used"),
    ],
)
def test_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Any, files: Any, line: str
) -> None:
    import re

    pieces(tmp_path, config, **files)
    (told,) = said(capsys)
    assert re.search(line, told)


def test_what_a_tokenizer_json_overrules_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**AS_IT_STANDS, "add_bos_token": True, "add_eos_token": False}
    folder = write_folder(tmp_path / "a", byte_level(), tokenizer_config=config)
    assert load_tokenizer(folder).text_begins == ()
    (told,) = said(capsys)
    assert "add_bos_token not used" in told
    config = {**AS_IT_STANDS, "tokenizer_class": "GPT2Tokenizer"}
    load_tokenizer(write_folder(tmp_path / "b", byte_level(), tokenizer_config=config))
    (told,) = said(capsys)
    assert "GPT2Tokenizer is not known here" in told


def test_metadata_of_gguf_that_is_not_used_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = gguf_of(byte_description(), mask_token_id=3, add_space_prefix=True)
    load_tokenizer(write_gguf(tmp_path / "x", **metadata))
    (told,) = said(capsys)
    assert "tokenizer.ggml.mask_token_id" in told


@pytest.mark.parametrize("begins", [True, False, None])
@pytest.mark.parametrize("ends", [True, False])
def test_what_stands_around_a_text(tmp_path: Path, begins: bool | None, ends: bool) -> None:
    flags = {"add_bos_token": begins, "add_eos_token": ends}
    flags = {name: value for name, value in flags.items() if value is not None}
    config = {"add_bos_token": begins, "add_eos_token": ends}
    ranks = write_ranks(tmp_path / "ranks").read_bytes()
    llama3 = write_folder(tmp_path / "llama3", ranks, tokenizer_config=llama3_config(**config))
    metadata = {**gguf_of(byte_description()), "add_bos_token": None, **flags}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    (tmp_path / "pieces").mkdir()
    for tokenizer in (
        pieces(tmp_path / "pieces", config),
        load_tokenizer(write_gguf(tmp_path / "x", **metadata)),
        load_tokenizer(llama3),
    ):
        assert tokenizer.text_begins == ((tokenizer.bos_id,) if begins else ())
        assert tokenizer.text_ends == ((tokenizer.eos_id,) if ends else ())
        ids = plain_text("12", tokenizer)
        assert ids == [*tokenizer.text_begins, *tokenizer.encode("12"), tokenizer.eos_id]


def test_meta_s_own_files_begin_texts_with_bos(tmp_path: Path) -> None:
    assert pieces(tmp_path).text_begins == (1,)
    assert load_tokenizer(write_ranks(tmp_path / "ranks")).text_begins == (128_000,)


def test_a_post_processor_that_adds_more_than_bos(tmp_path: Path) -> None:
    description = byte_description()
    processor = begin_with("<s>", 0)
    processor["single"].append({"SpecialToken": {"id": "<|im_end|>", "type_id": 0}})
    processor["special_tokens"]["<|im_end|>"] = {
        "id": "<|im_end|>",
        "ids": [3],
        "tokens": ["<|im_end|>"],
    }
    description["post_processor"] = processor
    tokenizer = load_tokenizer(write_tokenizer_json(tmp_path, description))
    assert plain_text("b", tokenizer) == [0, *tokenizer.encode("b"), 3, 1]


def test_stop_ids_of_generation_config_beside_every_form(tmp_path: Path) -> None:
    stop = {"generation_config": {"eos_token_id": [2, 7]}}
    assert pieces(tmp_path, {}, **stop).stop_ids == {2, 7}
    assert pieces(tmp_path, None, **stop).stop_ids == {2, 7}


def test_an_id_that_its_place_in_the_file_contradicts(tmp_path: Path) -> None:
    description = byte_description()
    description["added_tokens"].append(
        {**description["added_tokens"][0], "id": 300, "content": "<x>"}
    )
    with pytest.raises(UserError, match="'<x>' the id 300"):
        load_tokenizer(write_tokenizer_json(tmp_path, description))


def test_files_of_templates_go_before_the_field(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", MODEL, tokenizer_config={**LLAMA, "chat_template": "f"})
    assert load_tokenizer(folder).chat_templates == {"default": "f"}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    assert load_tokenizer(folder).chat_templates == {"rag": "r"}
    (folder / "chat_template.jinja").write_text("d")
    assert load_tokenizer(folder).chat_templates == {"default": "d", "rag": "r"}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = {"a": "b"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"chat_template\.jinja: is not UTF-8"):
        load_tokenizer(folder)


def test_named_templates_of_gguf(tmp_path: Path) -> None:
    named = {"chat_template.rag": "r", "chat_template": "d"}
    path = write_gguf(tmp_path / "x", **gguf_of(byte_description(), **named))
    assert load_tokenizer(path).chat_templates == {"default": "d", "rag": "r"}


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_ends_in_gguf_that_are_not_marked_as_control_tokens(tmp_path: Path, kind: str) -> None:
    metadata = gguf_of(byte_description()) if kind == "bytes" else sentencepiece_metadata()
    types = list(metadata["token_type"])
    types[metadata["eos_token_id"]] = 1
    path = write_gguf(tmp_path / "x", **{**metadata, "token_type": types})
    tokenizer = load_tokenizer(path)
    assert tokenizer.eos_id == metadata["eos_token_id"]
    assert tokenizer.eos_id not in tokenizer.encode("a</s>b")
