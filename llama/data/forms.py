"""The forms that a row may have, each chosen by all of the row's fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llama.data.fields import Fields, from_json_text, is_given, kind
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
    common: bool = False
    """Whether its fields have names that rows of other purposes have too, so that one of them alone
    tells nothing."""

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
    telling = [form for form in FORMS if not form.common or set(form.needs) <= record.keys()]
    nearest = max(telling, key=lambda form: form.likeness(record))
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


def _is_preference(record: Mapping[str, Any]) -> bool:
    return "chosen" in record and ("rejected" in record or "prompt" in record)


OTHER_FORMS = (
    Foreign(
        lambda record: _is_preference(record) and isinstance(record["chosen"], list),
        "is a preference pair (chosen and rejected), from which nothing is learnt here; to learn "
        "what was chosen: --columns messages=chosen, or, where `chosen` is the answer alone, "
        "--columns completion=chosen",
    ),
    Foreign(
        _is_preference,
        "is a preference pair (chosen and rejected), from which nothing is learnt here; to learn "
        "what was chosen: --columns completion=chosen, with the question as `prompt`",
    ),
    Foreign(
        lambda record: isinstance(record.get("segments"), list),
        "is text in segments (Axolotl's template-free form), which is not read; give it as "
        "`messages`, or as `prompt` and `completion`",
    ),
    Foreign(
        lambda record: "input_ids" in record,
        "holds tokens (input_ids), not text; give the text, which the model's own tokenizer cuts",
    ),
)
"""Asked of a row that has no known form whole."""
OTHER_FIELDS = (
    Foreign(
        lambda record: (
            (isinstance(record.get("label"), bool) and "completion" in record)
            or isinstance(record.get("kto_tag"), bool)
        ),
        "is a judged answer (KTO: `label` or `kto_tag`, true or false); keep the good ones, "
        "without it",
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
    tools = from_json_text(fields.take("tools"))
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
    """`messages` after what the row's `system` says, or its `system_prompt`, if it has one."""
    given = [name for name in SYSTEM if fields.has(name)]
    if not given:
        return messages
    if len(given) > 1:
        fields.refuse(f"has {' and '.join(f'`{name}`' for name in given)}; keep one of them")
    if messages and messages[0]["role"] in ("system", "developer"):
        fields.refuse(f"has a field '{given[0]}' and a system turn; keep one of them")
    return [{"role": "system", "content": fields.text(given[0])}, *messages]


def _alpaca(fields: Fields) -> list[Message]:
    earlier = _history(fields)
    turns = _question(fields, "instruction", "input", "output")
    return _after_system(fields, [*earlier, *turns])


def _answered(question: str, answer: str) -> Callable[[Fields], list[Message]]:
    """A question in one field, its answer in another, and in `context` what the question is on."""

    def read(fields: Fields) -> list[Message]:
        return _after_system(fields, _question(fields, question, "context", answer))

    return read


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


ANSWERED = (
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "response"),
)
"""Names that published sets of pairs give their questions and answers."""
SYSTEM = ("system", "system_prompt")
"""Fields of a row that hold what a system turn would."""


def _text(fields: Fields) -> str:
    text = fields.text("text")
    if fields.sound and not text:
        fields.refuse("field 'text' is empty")
    return text


FORMS = (
    Form("messages", ("messages",), _chat("messages")),
    Form("ShareGPT", ("conversations",), _chat("conversations")),
    Form("alpaca", ("instruction", "output"), _alpaca, ("input", "history")),
    Form("Dolly", ("instruction", "response"), _answered("instruction", "response"), ("context",)),
    Form("prompt/completion", ("prompt", "completion"), _pair),
    *(
        Form(f"{question}/{answer}", (question, answer), _answered(question, answer), common=True)
        for question, answer in ANSWERED
    ),
    Form("text", ("text",), _text),
)
"""In the order in which they are asked: Alpaca as it is published has a `text` field too."""
EXPECTED = (
    "expected `messages`, or `conversations` (ShareGPT), or `instruction` with `output` (Alpaca) "
    "or `response` (Dolly), or `prompt` and `completion`, or `question` and `answer`, or `text`"
)


def columns_hint(record: Mapping[str, Any]) -> str:
    """How a row of no known form would be read, as far as its values tell."""
    for name, value in record.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, Mapping) and {"role", "content"} <= first.keys():
            return f"; or rename: --columns messages={name}"
        if isinstance(first, Mapping) and {"from", "value"} <= first.keys():
            return f"; or rename: --columns conversations={name}"
    return "; or rename its own, as --columns prompt=NAME,completion=NAME"
