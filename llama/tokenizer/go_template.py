"""A chat template as Go's text/template has it, for Ollama, which does not read Jinja there.

It is found by asking the Jinja template what it writes of a conversation, and given only where it
then writes the same of others. Ollama gives a template `.System`, all system messages as one, and
`.Messages` with `.Role` and `.Content`, neighbours of one role as one
(https://github.com/ollama/ollama/blob/main/template/template.go). White space at the ends of a
message is written as it came: Go has nothing to trim it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama.errors import UserError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.chat import ChatTemplate
from llama.tokenizer.jinja_sandbox import CLOCK

Turns = Sequence[dict[str, str]]
_SAID = [f"\ue000{number}\ue001" for number in range(6)]
"""What is said in the conversations that are asked for: no template holds it, and none trims it."""
_NAME = "the chat template"


@dataclass(frozen=True)
class _Around:
    """What a template writes before and after what one role says."""

    before: str
    after: str

    def text(self, said: str) -> str:
        return f"{self.before}{said}{self.after}"


@dataclass(frozen=True)
class TurnTemplate:
    """A template that writes a conversation turn by turn."""

    alone: str
    """Before everything else, where there is no system message."""
    joined: bool
    """Whether the first user's message follows `alone` or the system message at once, without what
    the others begin with."""
    system: _Around
    user: _Around
    assistant: _Around
    answer: str
    """Where the next answer begins."""

    def text(self, turns: Turns) -> str:
        """What it writes of a conversation whose system message, if any, comes first."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        parts = [self.alone] if turns[0]["role"] != "system" else []
        joined = self.joined
        for turn in turns:
            around = roles[turn["role"]]
            if turn["role"] == "user" and joined:
                around, joined = _Around("", around.after), False
            parts.append(around.text(turn["content"]))
        return "".join([*parts, self.answer])

    def go(self) -> str:
        """The same in Go's words."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        written = {
            role: "{{ .Content }}".join((_literal(around.before), _literal(around.after)))
            for role, around in roles.items()
        }
        parts: list[str] = []
        if self.alone:
            parts.append("{{ if not .System }}" + _literal(self.alone) + "{{ end }}")
        if self.joined:
            parts.append("{{ $first := true }}")
            once = "{{ if $first }}{{ $first = false }}{{ else }}"
            begun = f"{once}{_literal(self.user.before)}{{{{ end }}}}"
            written["user"] = begun + written["user"].removeprefix(_literal(self.user.before))
        branches = [f'if eq .Role "{role}" }}}}{text}' for role, text in written.items()]
        each = "{{ " + "{{ else ".join(branches) + "{{ end }}"
        parts.append("{{ range .Messages }}" + each + "{{ end }}" + _literal(self.answer))
        return "".join(parts)


def go_template(source: str, tokenizer: Tokenizer) -> str | None:
    """The Jinja template `source` in Go's words, without the BOS that llama.cpp puts before a text
    itself; None where that cannot be said, or not be seen to be the same."""
    if CLOCK in source:
        return None
    try:
        asked = _Asked(ChatTemplate(_NAME, source), tokenizer)
        found = _found(asked)
        same = found is not None and all(
            found.text(turns) == asked.text(turns) for turns in _conversations()
        )
    except UserError:
        return None
    return found.go() if found is not None and same else None


def begins_with_bos(source: str, tokenizer: Tokenizer) -> bool:
    """Whether the Jinja template `source` writes BOS before a conversation; so where it cannot
    write a question alone."""
    try:
        text = ChatTemplate(_NAME, source).text(_turns("user"), None, tokenizer, True)
    except UserError:
        return True
    return text.startswith(tokenizer.template_variables.get("bos_token", ""))


class _Asked:
    """The Jinja template; of what it writes, without the BOS that is put before texts."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        bos = tokenizer.template_variables.get("bos_token", "")
        self._bos = bos if tokenizer.text_begins else ""

    def text(self, turns: Turns, generation: bool = True) -> str:
        text = self._template.text(turns, None, self._tokenizer, generation)
        return text.removeprefix(self._bos)


def _found(asked: _Asked) -> TurnTemplate | None:
    """What is said of each turn, from four texts. None where turns do not stand one after
    another."""
    system, one, two, three, *_ = _SAID
    turns = _turns("user", "assistant", "user")
    alone = _cut(asked.text(turns), one, two, three)
    guided = _cut(asked.text([_turn("system", system), *turns]), system, one, two, three)
    closed = _cut(asked.text(turns[:2], generation=False), one, two)
    opened = _cut(asked.text(turns, generation=False), one, two, three)
    if not (alone and guided and closed and opened) or alone[1:] != guided[2:]:
        return None
    after = opened[3]
    parts = {
        "assistant before": (alone[1], after),
        "answer": (alone[3], after),
        "user before": (alone[2], closed[2]),
    }
    if not all(whole.startswith(start) for whole, start in parts.values()):
        return None
    rest = {name: whole.removeprefix(start) for name, (whole, start) in parts.items()}
    before = rest["user before"]
    led, start = guided[1], alone[0]
    as_others = start.endswith(before) and led.endswith(before)
    return TurnTemplate(
        alone=start.removesuffix(before) if as_others else start,
        joined=not as_others,
        system=_Around(guided[0], led.removesuffix(before) if as_others else led),
        user=_Around(before, after),
        assistant=_Around(rest["assistant before"], closed[2]),
        answer=rest["answer"],
    )


def _cut(text: str, *said: str) -> list[str] | None:
    """What stands before, between and after the texts, each of which is there once, in order."""
    parts: list[str] = []
    for one in said:
        before, found, text = text.partition(one)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _conversations() -> list[Turns]:
    """Those of which both must write the same: with and without system message, of one to three
    questions, and with what templates take out of answers."""
    system = _turn("system", _SAID[0])
    plain = [_turns(*("user", "assistant", "user", "assistant", "user")[:n]) for n in (1, 3, 5)]
    thought = _turns("user", "assistant", "user")
    thought[1] = _turn("assistant", f"<think>{_SAID[4]}</think>{_SAID[5]}")
    plain.append(thought)
    return [turns for each in plain for turns in (each, [system, *each])]


def _turns(*roles: str) -> list[dict[str, str]]:
    return [_turn(role, said) for role, said in zip(roles, _SAID[1:], strict=False)]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _literal(text: str) -> str:
    """As Go writes it where it is no action."""
    return text.replace("{{", '{{ "{{" }}')
