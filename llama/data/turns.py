"""The turns of a conversation, as chats (`role`, `content`) and ShareGPT (`from`, `value`) have
them."""

from __future__ import annotations

from typing import Any, cast

from llama.data.fields import Fields, from_json_text, is_given, kind
from llama.tokenizer.base import REASONING, Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
SHAREGPT: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "tool": "tool",
}
CALLING = "function_call"
"""A turn of ShareGPT whose value is a call, or a list of them, as JSON text."""
_SWITCH = "say which turns are learnt by `weight` (0 or 1) or `train` (true or false)"
_MEDIA = "only text is learnt here"
REFUSED = {
    "function_call": "give it as `tool_calls`, its newer form",
    **dict.fromkeys(("loss", "loss_mask", "loss_weight", "mask", "masked"), _SWITCH),
    **dict.fromkeys(("training", "train_detail", "train_on_turn", "trainable"), _SWITCH),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _MEDIA),
}
"""Fields of a turn that would change what is learnt and are not read, and what to do instead."""

_Record = dict[str, Any]


def read_turns(fields: Fields, name: str) -> list[Message]:
    """The turns of the field `name`. What cannot be used is noted in `fields`, and so is each field
    of a turn that is not read."""
    turns = fields.take(name)
    if not isinstance(turns, list):
        fields.refuse(f"field '{name}' is {kind(turns)}, not a list")
        return []
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        where = f"field '{name}', turn {number}"
        if not isinstance(turn, dict):
            fields.refuse(f"{where} is {kind(turn)}, not an object")
            continue
        left = {key: value for key, value in turn.items() if value is not None}
        message = _message(fields, where, left)
        for field in [field for field in left if field in REFUSED and is_given(left[field])]:
            fields.refuse(f"{where} has `{field}`, which is not read; {REFUSED[field]}")
            del left[field]
        fields.in_turns |= {str(field): None for field, value in left.items() if is_given(value)}
        if message is not None:
            messages.append(message)
    return messages


def _message(fields: Fields, where: str, left: _Record) -> Message | None:
    """One turn; what is read is taken out of `left`."""
    by_from = "role" not in left and "from" in left
    known = SHAREGPT if by_from else ROLES
    said = left.pop("from" if by_from else "role", None)
    role = known.get(said) if isinstance(said, str) else None
    name = "value" if by_from and "content" not in left else "content"
    if by_from and said == CALLING:
        left["tool_calls"] = _calls(fields, f"{where}, field '{name}'", left.get(name))
        left[name] = ""
    extra = _extra(fields, where, role, left)
    content = ""
    if name in left or not extra.keys() & {"tool_calls", *REASONING}:
        content = _content(fields, f"{where}, field '{name}'", left.pop(name, None))
    if role is None:
        fields.refuse(f"{where} has the role {repr(said)[:60]}; known are {', '.join(known)}")
        return None
    message = cast(Message, {"role": role, "content": content, **extra})
    if not _is_learnt(fields, where, role, left):
        message["learn"] = False
    return message


def _calls(fields: Fields, where: str, value: Any) -> list[_Record]:
    """The calls of a `function_call` turn, `{"name": ..., "arguments": ...}` each, as `tool_calls`
    has them."""
    said = from_json_text(value)
    calls = said if isinstance(said, list) else [said]
    if not calls or not all(
        isinstance(c, dict) and {"name", "arguments"} <= c.keys() for c in calls
    ):
        fields.refuse(f'{where} is not a call, {{"name": ..., "arguments": ...}} as JSON')
        return []
    return [{"type": "function", "function": call} for call in calls]


def _content(fields: Fields, where: str, value: Any) -> str:
    """A text, or a list of parts `{"type": "text", "text": ...}`, which are joined."""
    if not isinstance(value, list):
        return fields.check(where, value)
    texts: list[str] = []
    for number, part in enumerate(value, start=1):
        at = f"{where}, part {number}"
        if not isinstance(part, dict):
            fields.refuse(f'{at} is {kind(part)}, not {{"type": "text", "text": ...}}')
            continue
        left = {key: item for key, item in part.items() if item is not None}
        type_ = left.pop("type", "text")
        if type_ != "text":
            fields.refuse(f"{at} is of type {repr(type_)[:60]}; {_MEDIA}")
            continue
        texts.append(fields.check(f"{at}, field 'text'", left.pop("text", None)))
        fields.in_turns |= {f"{k} of a part": None for k, item in left.items() if is_given(item)}
    return "".join(texts)


def _extra(fields: Fields, where: str, role: Role | None, left: _Record) -> _Record:
    """What a turn says besides its content, taken out of `left`."""
    extra: _Record = {}
    names = ["name", "tool_call_id"]
    names += REASONING if role == "assistant" else ()
    for name in names:
        if is_given(left.get(name)):
            extra[name] = fields.check(f"{where}, field '{name}'", left.pop(name))
    if len({extra[name] for name in REASONING if name in extra}) > 1:
        fields.refuse(f"{where} has several fields of reasoning that differ; keep one of them")
    calls = from_json_text(left.get("tool_calls"))
    if role == "assistant" and is_given(calls):
        del left["tool_calls"]
        at = f"{where}, field 'tool_calls'"
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            fields.refuse(f"{at} is {kind(calls)}, not a list of objects")
        elif fields.encodable(at, calls):
            extra["tool_calls"] = calls
    return extra


def _is_learnt(fields: Fields, where: str, role: Role, left: _Record) -> bool:
    """What `weight` and `train` say. On a turn that is never learnt only 0 and false are read."""
    said: set[bool] = set()
    weight, train = left.get("weight"), left.get("train")
    if weight is not None and (not isinstance(weight, int | float) or weight not in (0, 1)):
        fields.refuse(f"{where}, field 'weight' is {repr(weight)[:60]}; known are 0 and 1")
    elif weight is not None:
        said.add(bool(weight))
    if train is not None and not isinstance(train, bool):
        fields.refuse(f"{where}, field 'train' is {repr(train)[:60]}; known are true and false")
    elif train is not None:
        said.add(train)
    if len(said) > 1:
        fields.refuse(f"{where} has `weight` {weight} and `train` {str(train).lower()}; keep one")
    if role == "assistant" or said == {False}:
        left.pop("weight", None)
        left.pop("train", None)
    return said != {False} or role != "assistant"
