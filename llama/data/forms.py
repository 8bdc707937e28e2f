"""The forms that a row may have, each chosen by all of the row's fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llama.data.fields import Fields, is_given, kind
from llama.data.turns import read_turns
from llama.tokenizer.base import Message


@dataclass(frozen=True)
class Form:
    """`read` gives the conversation of a row that has every field of `needs`, or its text."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Fields], list[Message] | str]
    may_have: tuple[str, ...] = ()
    """Fields by which a row is told that lacks one of `needs`."""

    def is_whole(self, record: Mapping[str, Any]) -> bool:
        return all(record.get(name) is not None for name in self.needs)

    def likeness(self, record: Mapping[str, Any]) -> tuple[int, int]:
        """How much of the form the row has: values that it needs, then names of fields."""
        given = sum(record.get(name) is not None for name in self.needs)
        return given, sum(name in record for name in (*self.needs, *self.may_have))


@dataclass(frozen=True)
class Foreign:
    """Rows of another purpose. `test` is given a row; `what` goes on from `row 1: `."""

    test: Callable[[Mapping[str, Any]], bool]
    what: str


def form_of(record: Mapping[str, Any]) -> Form | None:
    """The first form of which the row has all that it needs, else the one of which it has most."""
    whole = next((form for form in FORMS if form.is_whole(record)), None)
    if whole is not None:
        return whole
    nearest = max(FORMS, key=lambda form: form.likeness(record))
    return nearest if nearest.likeness(record)[0] else None


def foreign(record: Mapping[str, Any], form: Form | None) -> str | None:
    """What the row is, where that is nothing to be trained on here as it stands."""
    others = OTHER_FIELDS
    if form is None or not form.is_whole(record):
        others = OTHER_FORMS + OTHER_FIELDS
    elif form.name == "text":
        others = ()
    return next((other.what for other in others if other.test(record)), None)


def _holds(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda record: any(is_given(record.get(name)) for name in names)


OTHER_FORMS = (
    Foreign(
        lambda record: "chosen" in record and "rejected" in record,
        "is a preference pair (chosen and rejected), from which nothing is learnt here; keep what "
        "was chosen, as `prompt` and `completion` or as `messages`",
    ),
    Foreign(
        lambda record: "input_ids" in record,
        "holds tokens (input_ids), not text; give the text, which the model's own tokenizer cuts",
    ),
)
"""Asked of a row that has no known form whole."""
OTHER_FIELDS = (
    Foreign(
        lambda record: isinstance(record.get("label"), bool) and "completion" in record,
        "is a judged answer (KTO: `label` true or false); keep the good ones, without `label`",
    ),
    Foreign(
        _holds("image", "images", "audio", "audios", "video", "videos"),
        "holds images, sound or film; only text is learnt here: give rows of text alone",
    ),
    Foreign(_holds("functions"), "has `functions`, which is not read; give them as `tools`"),
    Foreign(
        _holds("documents"),
        "has `documents`, which is not read; put their text into a message",
    ),
    Foreign(
        _holds("chat_template_kwargs"),
        "has `chat_template_kwargs`, which is not read; give a --template that needs none",
    ),
)
"""Asked of every row but a plain text: without these fields it would say something else."""


def read_tools(fields: Fields) -> list[Any] | None:
    """The functions that the model may call: a list of objects, or that list as JSON text, as
    tables of columns have it."""
    if not fields.has("tools"):
        return None
    tools = fields.take("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            tools = str(tools)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        fields.refuse(f"field 'tools' is {kind(tools)}, not a list of objects")
        return None
    return tools if tools and fields.encodable("field 'tools'", tools) else None


def _chat(name: str) -> Callable[[Fields], list[Message]]:
    def read(fields: Fields) -> list[Message]:
        messages = read_turns(fields, name)
        if fields.sound and not any(message["role"] == "assistant" for message in messages):
            fields.refuse(f"field '{name}' has no assistant turn, so nothing to learn")
        return _after_system(fields, messages)

    return read


def _after_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """`messages` after the row's `system`, if it has one."""
    if not fields.has("system"):
        return messages
    if messages and messages[0]["role"] in ("system", "developer"):
        fields.refuse("has a field 'system' and a system turn; keep one of them")
    return [{"role": "system", "content": fields.text("system")}, *messages]


def _alpaca(fields: Fields) -> list[Message]:
    earlier = _history(fields)
    turns = _question(fields, "instruction", "input", "output")
    return _after_system(fields, [*earlier, *turns])


def _dolly(fields: Fields) -> list[Message]:
    return _after_system(fields, _question(fields, "instruction", "context", "response"))


def _question(fields: Fields, instruction: str, given: str, answer: str) -> list[Message]:
    user: Message = {"role": "user", "content": fields.text(instruction)}
    works_on = fields.text(given, optional=True)
    if works_on:
        user["input"] = works_on
    return [user, {"role": "assistant", "content": fields.text(answer)}]


def _history(fields: Fields) -> list[Message]:
    """Pairs of question and answer that come before the instruction."""
    pairs = fields.take("history")
    if not is_given(pairs):
        return []
    if not isinstance(pairs, list):
        fields.refuse(f"field 'history' is {kind(pairs)}, not a list")
        return []
    messages: list[Message] = []
    for number, pair in enumerate(pairs, start=1):
        where = f"field 'history', pair {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"a list of {len(pair)}" if isinstance(pair, list) else kind(pair)
            fields.refuse(f"{where} is {found}, not [question, answer]")
            continue
        question = fields.check(f"{where}, question", pair[0])
        answer = fields.check(f"{where}, answer", pair[1])
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def _pair(fields: Fields) -> list[Message]:
    """Texts, or lists of messages. What was answered within the prompt is not learnt again."""
    if isinstance(fields.look("prompt"), list):
        prompt = read_turns(fields, "prompt")
        for message in prompt:
            if message["role"] == "assistant":
                message["learn"] = False
    else:
        prompt: list[Message] = [{"role": "user", "content": fields.text("prompt")}]
    if not isinstance(fields.look("completion"), list):
        answer: Message = {"role": "assistant", "content": fields.text("completion")}
        return _after_system(fields, [*prompt, answer])
    answers = read_turns(fields, "completion")
    if fields.sound and not any(message["role"] == "assistant" for message in answers):
        fields.refuse("field 'completion' has no assistant turn, so nothing to learn")
    return _after_system(fields, [*prompt, *answers])


def _text(fields: Fields) -> str:
    text = fields.text("text")
    if fields.sound and not text:
        fields.refuse("field 'text' is empty")
    return text


FORMS = (
    Form("messages", ("messages",), _chat("messages")),
    Form("ShareGPT", ("conversations",), _chat("conversations")),
    Form("alpaca", ("instruction", "output"), _alpaca, ("input", "history")),
    Form("Dolly", ("instruction", "response"), _dolly, ("context",)),
    Form("prompt/completion", ("prompt", "completion"), _pair),
    Form("text", ("text",), _text),
)
"""In the order in which they are asked: Alpaca as it is published has a `text` field too."""
EXPECTED = (
    "expected `messages`, or `conversations` (ShareGPT), or `instruction` with `output` (Alpaca) "
    "or `response` (Dolly), or `prompt` and `completion`, or `text`"
)
