"""What is said, kept, forgotten and saved; no terminal is there, and no weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.commands.chat.conversation import Conversation, Exchange
from llama.commands.chat.slash import COMMANDS, obeyed
from llama.commands.chat.speaker import Speaker
from llama.data.rows import read_rows
from llama.errors import UserError
from llama.model.decoding import Sampling
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.growing import whole_characters
from llama.tokenizer.templates import load_template
from tests.support.tiny_runs import CONFIG
from tests.support.tokenizer_files import byte_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return byte_tokenizer(tmp_path)


@pytest.fixture
def talk(tokenizer: Tokenizer) -> Conversation:
    template = load_template("chatml", tokenizer)
    return Conversation(template, tokenizer, replace(CONFIG, max_seq_len=200), "Be brief.")


def test_the_template_writes_what_was_said(talk: Conversation, tokenizer: Tokenizer) -> None:
    talk.exchanges.append(Exchange("Hi", "Hello", True))
    ids, room = talk.prompt("Bye")
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    messages: Any = [{"role": role, "content": content} for role, content in turns]
    assert ids == load_template("chatml", tokenizer).prompt(messages, tokenizer)
    assert room == 200 - len(ids)
    talk.reset()
    talk.system = None
    assert talk.prompt("Bye")[0] == load_template("chatml", tokenizer).prompt(
        messages[-1:], tokenizer
    )


def test_a_conversation_that_has_outgrown_the_model(talk: Conversation) -> None:
    with pytest.raises(UserError, match=r"has \d+ tokens .* the model 200 .*: say less at once"):
        talk.prompt("x" * 200)
    talk.exchanges.append(Exchange("a", "x" * 200, True))
    with pytest.raises(UserError, match="/reset begins anew"):
        talk.prompt("b")


class Says:
    """In the place of a decoder's session: it answers with the same tokens every time."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    def answer(self, _prompt: Any, most: int, *_: Any) -> Iterator[int]:
        yield from self._ids[:most]


class Full:
    """A device whose memory is full."""

    def answer(self, *_: Any) -> Iterator[int]:
        raise torch.OutOfMemoryError
        yield 0


def speaker(
    talk: Conversation, tokenizer: Tokenizer, session: Any, as_self: Any = nullcontext
) -> Speaker:
    return Speaker("model", session, tokenizer, talk, as_self)


def test_an_answer_is_kept_as_far_as_it_was_said(talk: Conversation, tokenizer: Tokenizer) -> None:
    side = speaker(talk, tokenizer, Says(tokenizer.encode("good 日")))
    assert "".join(side.answer("a", 100, Sampling())) == "good 日"
    assert side.cut_by is None
    stopped = side.answer("b", 100, Sampling())
    assert next(stopped) + next(stopped) == "go"
    stopped.close()
    assert side.cut_by == "stopped"
    assert "".join(side.answer("c", 6, Sampling())) == "good "  # one byte of three is no character
    assert side.cut_by == "cut off at --max_new_tokens 6"
    side.answer("never begun", 100, Sampling()).close()
    assert talk.exchanges == [
        Exchange("a", "good 日", True),
        Exchange("b", "go", False),
        Exchange("c", "good ", False),
    ]
    turns = talk.row()["messages"]
    assert [turn.get("train") for turn in turns if turn["role"] == "assistant"] == [
        None,
        False,
        False,
    ]


def test_the_last_positions_are_used(talk: Conversation, tokenizer: Tokenizer) -> None:
    side = speaker(talk, tokenizer, Says(tokenizer.encode("y" * 400)))
    room = talk.prompt("x")[1]
    assert "".join(side.answer("x", 500, Sampling())) == "y" * room
    assert side.cut_by is not None and "/reset" in side.cut_by


def test_an_answer_that_fails_leaves_no_trace(talk: Conversation, tokenizer: Tokenizer) -> None:
    side = speaker(talk, tokenizer, Full())
    with pytest.raises(torch.OutOfMemoryError):
        list(side.answer("x", 10, Sampling()))
    assert talk.exchanges == []


def test_sides_take_turns_in_one_model(talk: Conversation, tokenizer: Tokenizer) -> None:
    entered: list[str] = []

    @contextmanager
    def as_base() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    side = speaker(talk, tokenizer, Says(tokenizer.encode("ab")), as_base)
    for _ in side.answer("x", 10, Sampling()):
        assert entered[-1] == "out"
    assert len(entered) == 6  # around two tokens, and around finding that there are no more


@pytest.mark.parametrize("text", ["", "plain", "é日🙂", "a🙂b"])
def test_no_half_character_is_shown(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    pieces = list(whole_characters(ids, tokenizer))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    if text.endswith("🙂"):
        assert "".join(whole_characters(ids[:-1], tokenizer)) == text[:-1]


def test_commands(talk: Conversation, tmp_path: Path) -> None:
    other = Conversation(talk._template, talk._tokenizer, talk._config, talk.system)
    sides = [other, talk]
    assert obeyed("hello", sides) is None and obeyed(" /reset", sides) is None
    assert obeyed("/a\n/b", sides) is None
    talk.exchanges.append(Exchange("a", "b", True))
    assert "anew" in (obeyed("/reset", sides) or "") and talk.exchanges == []
    assert "Talk like\na pirate." in (obeyed("/system Talk like\na pirate.", sides) or "")
    assert other.system == talk.system == "Talk like\na pirate."
    assert obeyed("/system", sides) == "system message: what the template says"
    assert talk.system is None
    shown = obeyed("/help", sides) or ""
    assert all(word in shown for word in (*COMMANDS, "Ctrl-C"))
    with pytest.raises(EOFError):
        obeyed("/exit", sides)


def test_rows_are_added_to_a_file(talk: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "rows of mine.jsonl"
    talk.exchanges += [Exchange("a", "日", True), Exchange("c", "d", False)]
    assert (obeyed(f"/save {path}", [talk]) or "").startswith(f"{path}: row 1, of 2")
    talk.exchanges[1:] = []
    assert (obeyed(f'/save "{path}"', [talk]) or "") == f"{path}: row 2, of 1 messages and answers"
    rows = read_rows([path]).rows
    assert [len(row.messages) for row in rows] == [5, 3]
    assert rows[0].messages[4].get("learn") is False and rows[1].messages[2]["content"] == "日"
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/save", "expected a file"),
        ("/save {}/none/x.jsonl", "x.jsonl cannot be written: No such file"),
        ("/save {}", "is a folder; a file is expected"),
        ("/save {}/list.json", "is no JSONL file of rows: name another"),
        ("/save {}/weights.bin", "weights.bin"),
        ("/reset now", "/reset: expected nothing behind it, found 'now'"),
        ("/rest", "unknown command /rest; did you mean /reset?"),
    ],
)
def test_what_a_command_refuses(text: str, said: str, talk: Conversation, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('[{"text": "a"}]')
    (tmp_path / "weights.bin").write_bytes(b"\x80\x00weights")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    talk.exchanges.append(Exchange("a", "b", True))
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        obeyed(text.format(tmp_path), [talk])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_to_save(talk: Conversation, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing has been said"):
        obeyed(f"/save {tmp_path}/x.jsonl", [talk])
    assert json.dumps(talk.row())  # a system message alone
