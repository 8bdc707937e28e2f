"""Ids against independent implementations: transformers, sentencepiece, tiktoken, tokenizers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine
from transformers import PreTrainedTokenizerFast

from llama.data.rows import bundled
from llama.data.types import IGNORE
from llama.tokenizer.base import Message, Tokenizer
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from llama.tokenizer.tiktoken_file import LLAMA3_SPLIT
from tests.support.tokenizer_files import (
    llama3,
    llama3_ranks,
    smollm2,
    smollm2_gguf,
    write_gguf,
    write_tokenizer_json,
)

LLAMA2_CHAT = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + \
system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}\
{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}\
{% endif %}{% endfor %}"""
"""As meta-llama/Llama-2-7b-chat-hf publishes it, but for the check of the order of turns."""


def texts(count: int = 300) -> list[str]:
    """Bundled texts, and random ones of awkward characters."""
    rows = json.loads(bundled("instructions_200").read_text())
    found = [row["output"] for row in rows[: count // 2]]
    dice = random.Random(0)
    pool = [*" \n\t\r0123456789abcXYZ.,'\"-_(){}", "'s", "  ", "\u00e9", "\u4e16", "\U0001f600",
            "\u00b2", "\u0663", "\u200b", "\u0301", "\ufb01", "\xa0", "\u2028"]  # fmt: skip
    while len(found) < count:
        found.append("".join(dice.choices(pool, k=dice.randrange(1, 60))))
    return found


def conversations(edge_spaces: bool = True) -> list[list[Message]]:
    """Of one to three turns, with and without a system message.

    Answers begin with a letter: one that begins with a line break would be merged with the
    template's own by a joint encoding, which here is cut at the border for generation's sake.
    """
    pool = texts()
    dice = random.Random(1)
    found: list[list[Message]] = []
    for _ in range(120):
        messages: list[Message] = []
        if dice.random() < 0.5:
            messages.append({"role": "system", "content": dice.choice(pool)})
        for _ in range(dice.randrange(1, 4)):
            messages.append({"role": "user", "content": dice.choice(pool)})
            messages.append({"role": "assistant", "content": "A" + dice.choice(pool)})
        if not edge_spaces:
            for message in messages:
                message["content"] = "B" + message["content"].strip() + "E"
        found.append(messages)
    return found


def independent_smollm2() -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer from the package gguf's reading, with library objects throughout."""
    fields = gguf.GGUFReader(smollm2_gguf()).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    types = fields["tokenizer.ggml.token_type"].contents()
    engine = Engine(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(tokens[i]) for i, t in enumerate(types) if t == 3])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=engine, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    wrapped.chat_template = fields["tokenizer.chat_template"].contents()
    return wrapped


def assert_same_chats(
    ours: Tokenizer, theirs: Any, template: str | None, chats: list[list[Message]]
) -> None:
    """`render` and `prompt` against `apply_chat_template` without and with generation prompt."""
    ours_template = load_template(template, ours)
    for messages in chats:
        expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        ids, labels = ours_template.render(messages, ours)
        assert ids == expected
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        kept = ours.decode([label for label in labels if label != IGNORE])
        assert "".join(kept.split()) == "".join("".join(answers).split())
        prompt = theirs.apply_chat_template(
            messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert ours_template.prompt(messages[:-1], ours) == prompt


def test_smollm2() -> None:
    theirs = independent_smollm2()
    for text in texts():
        ids = smollm2().encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert smollm2().decode(ids) == text
    assert_same_chats(smollm2(), theirs, None, conversations())
    assert_same_chats(smollm2(), theirs, "chatml", [c for c in conversations() if len(c) % 2])


def llama2_description(model: Path) -> dict[str, Any]:
    """LLaMA-2's tokenizer.json, made from its sentencepiece model as Hugging Face makes it."""
    from sentencepiece import SentencePieceProcessor

    real = SentencePieceProcessor(model_file=str(model))
    pieces = {real.IdToPiece(i): i for i in range(real.vocab_size())}
    score = {piece: real.GetScore(i) for piece, i in pieces.items()}
    merges = []
    for piece in pieces:
        local = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        local = [pair for pair in local if pair[0] in pieces and pair[1] in pieces]
        local.sort(key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
        merges += [(*pair, score[piece]) for pair in local]
    merges.sort(key=lambda merge: -merge[2])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    space = "\u2581"
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True, **flags}
            for i, text in enumerate(["<unk>", "<s>", "</s>"])
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": space},
                {"type": "Replace", "pattern": {"String": " "}, "content": space},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": space}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": pieces,
            "merges": [[left, right] for left, right, _ in merges],
        },
    }


def test_llama2_tokenizer_json_and_sentencepiece(
    llama2_model: Path, llama2: Tokenizer, tmp_path: Path
) -> None:
    description = llama2_description(llama2_model)
    path = write_tokenizer_json(tmp_path, description, chat_template=LLAMA2_CHAT)
    from_json = load_tokenizer(path)
    for text in texts():
        for follows in ("nothing", "special", "text"):
            assert from_json.encode(text, follows) == llama2.encode(text, follows)
        assert from_json.decode(from_json.encode(text)) == text
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>", eos_token="</s>")
    theirs.chat_template = LLAMA2_CHAT
    chats = conversations(edge_spaces=False)
    assert_same_chats(from_json, theirs, None, chats)
    assert_same_chats(from_json, theirs, "llama2", chats)
    assert_same_chats(llama2, theirs, "llama2", chats)


def test_llama2_tokenizer_json_with_metaspace_first(llama2_model: Path, tmp_path: Path) -> None:
    description = llama2_description(llama2_model)
    description["normalizer"] = None
    description["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "first",
        "split": False,
    }
    path = write_tokenizer_json(tmp_path, description)
    ours = load_tokenizer(path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>", eos_token="</s>")
    theirs.chat_template = LLAMA2_CHAT
    assert_same_chats(ours, theirs, "llama2", conversations(edge_spaces=False))
    assert ours.encode("Hi", "nothing") != ours.encode("Hi", "special")


def test_llama2_template_is_metas(llama2_model: Path, llama2: Tokenizer) -> None:
    """Meta's chat: each prompt and answer pair is one encoding, between BOS and EOS."""
    from sentencepiece import SentencePieceProcessor

    real = SentencePieceProcessor(model_file=str(llama2_model))
    for messages in conversations(edge_spaces=False):
        if messages[0]["role"] == "system":
            continue
        expected: list[int] = []
        for user, assistant in zip(messages[::2], messages[1::2], strict=True):
            dialog = f"[INST] {user['content']} [/INST] {assistant['content']} "
            expected += [1, *real.encode(dialog), 2]
        assert load_template("llama2", llama2).render(messages, llama2)[0] == expected


def test_llama3_template_is_metas() -> None:
    """Meta's ChatFormat: each header and each stripped content is an encoding of its own."""
    ours = llama3()
    special = ours.special_tokens
    for messages in conversations(edge_spaces=False):
        expected = [special["<|begin_of_text|>"]]
        for message in messages:
            expected += [special["<|start_header_id|>"], *ours.encode(message["role"])]
            expected += [special["<|end_header_id|>"], *ours.encode("\n\n")]
            expected += [*ours.encode(message["content"].strip()), special["<|eot_id|>"]]
        assert load_template("llama3", ours).render(messages, ours)[0] == expected


@pytest.mark.slow
def test_llama3_in_gguf_equals_tiktoken(tmp_path: Path) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    names = list(llama3().special_tokens)
    engine = TikTokenConverter(
        vocab_file=str(llama3_ranks()), pattern=LLAMA3_SPLIT, extra_special_tokens=names
    ).converted()
    model = json.loads(engine.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)[:128_000]
    path = write_gguf(
        tmp_path / "llama3.gguf",
        model="gpt2",
        pre="llama-bpe",
        tokens=tokens + names,
        token_type=[1] * len(tokens) + [3] * len(names),
        merges=[" ".join(merge) for merge in model["merges"]],
        bos_token_id=128_000,
        eos_token_id=128_009,
    )
    ours = load_tokenizer(path)
    assert ours.special_tokens == llama3().special_tokens
    assert ours.stop_ids == llama3().stop_ids
    for text in [*texts(), "<|eot_id|>", "a<|begin_of_text|>b"]:
        assert ours.encode(text) == llama3().encode(text)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.long
def test_llama_bpe_split_in_gguf(tmp_path: Path) -> None:
    """The same, without Llama 3's own file: SmolLM2's merges under Llama 3's split."""
    fields = gguf.GGUFReader(smollm2_gguf()).fields
    names = ("tokens", "token_type", "merges", "bos_token_id", "eos_token_id")
    metadata = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in names}
    path = write_gguf(tmp_path / "x.gguf", model="gpt2", pre="llama-bpe", **metadata)
    ours = load_tokenizer(path)
    theirs = independent_smollm2().backend_tokenizer
    theirs.model.ignore_merges = True
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in texts():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
