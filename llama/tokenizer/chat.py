"""Jinja chat templates, rendered so that the place of every answer is known.

A template is given a mark in place of each content, and the contents are put in afterwards: so no
search for the answer is needed, and special-token text is recognised in the template alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama.errors import UserError
from llama.tokenizer.base import REASONING, Message, Template, Tokenizer, Tools, Written
from llama.tokenizer.jinja_sandbox import compile_template
from llama.tokenizer.marks import MARK, Marks, Placed, numbers_in, special_pattern
from llama.tokenizer.segments import Segment, encode_segments, lost_characters

CALLS = ("tool_calls", "name", "tool_call_id")
"""Fields of a turn, besides what it says, that are the template's to write."""

Turns = Sequence[dict[str, Any]]


def joined_content(message: Message) -> str:
    """The content, with what an instruction works on after it."""
    given = message.get("input")
    return f"{message['content']}\n\n{given}" if given else message["content"]


class ChatTemplate(Template):
    """A Jinja chat template, which gives the ids that transformers' `apply_chat_template` gives,
    but for control tokens written out in a row's own texts: those stay text."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self._source = source
        self._render = compile_template(source, name)

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[str, str]]:
        """Another process compiles the source itself."""
        return ChatTemplate, (self.name, self._source)

    def write(
        self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Tools = None
    ) -> Written:
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise UserError(f"{self.name}: the conversation has no assistant turn")
        page = self._page(messages[: answers[-1] + 1], tools, tokenizer)
        unwritten = page.unwritten()
        if "tool_calls" in unwritten:
            turn = 1 + next(i for i in answers if "tool_calls" in messages[i])
            raise UserError(
                f"{self.name}: turn {turn} has tool_calls, which the template does not write; use "
                "a --template that does"
            )
        segments: list[Segment] = []
        at = 0
        for answer in answers:
            border = page.border(answer)
            segments += page.segments(at, border)
            learned, at = page.answer(answer, border)
            segments += learned
        segments += page.segments(at, len(page.text))
        ids, labels = encode_segments(segments, tokenizer)
        text = "".join(segment.value for segment in segments if isinstance(segment.value, str))
        lost = lost_characters(text, ids, tokenizer)
        return Written(ids, labels, page.left_out(), unwritten, lost, page.ends)

    def prompt(
        self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Tools = None
    ) -> list[int]:
        page = self._page([*messages, {"role": "assistant", "content": "?"}], tools, tokenizer)
        return encode_segments(page.segments(0, page.border(len(messages))), tokenizer)[0]

    def jinja(self, tokenizer: Tokenizer) -> str:
        return self._source

    def text(
        self, turns: Turns, tools: Tools, tokenizer: Tokenizer, generation: bool = False
    ) -> str:
        """What the template makes of `turns`."""
        variables: dict[str, Any] = {
            "messages": turns,
            "tools": tools,
            "documents": None,
            **tokenizer.template_variables,
            "add_generation_prompt": generation,
        }
        return self._render(variables)

    def _page(self, messages: Sequence[Message], tools: Tools, tokenizer: Tokenizer) -> _Page:
        """A template that knows no developer writes his turn as the system's."""
        if any(message["role"] == "developer" for message in messages):
            try:
                page = _Page(self, messages, tools, tokenizer)
            except UserError:
                page = None
            if page is not None and "developer" not in page.left_out():
                return page
            messages = [
                {**m, "role": "system"} if m["role"] == "developer" else m for m in messages
            ]
        return _Page(self, messages, tools, tokenizer)


class _Page:
    """One conversation as the template renders it, with marks in place of what it says."""

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        tools: Tools,
        tokenizer: Tokenizer,
    ) -> None:
        self._template = template
        self._messages = messages
        self._given_tools = tools
        self._tokenizer = tokenizer
        self._special = special_pattern(tuple(tokenizer.special_tokens))
        self._marks = Marks(self._special)
        self._turns = [_turn(message, self._marks) for message in messages]
        self._tools = self._marks.guard(tools)
        self.text = template.text(self._turns, self._tools, tokenizer)
        self._plain = template.text([_turn(m) for m in messages], tools, tokenizer)
        placed = self._marks.place(self.text, self._plain)
        if placed is None or not self._answers_stand(placed):
            raise self._unplaced()
        self._placed = placed
        self._places = {mark.number: mark for mark in placed}
        self.ends: tuple[str, str] | None = None
        """As of `Written`, once the last turn was asked for."""

    def border(self, answer: int) -> int:
        """Where the prompt of turn `answer` ends: where the template's own generation prompt does,
        else where the turn itself begins, with the spaces before it left to the answer."""
        start, end = self._own(answer)
        prompt = self._until(answer, generation=True)
        if prompt and len(prompt) <= end and self.text.startswith(prompt):
            only_spaces = not self.text[len(prompt) : start].strip(" ")
            if (len(prompt) <= start and only_spaces) or prompt != self._until(answer):
                return len(prompt)
        return len(self.text[:start].rstrip(" "))

    def answer(self, answer: int, border: int) -> tuple[list[Segment], int]:
        """The supervised segments of turn `answer`, and where the text after them begins.

        The turn ends with the token that the template writes after it; where it writes none after
        the last turn, EOS is put there and whatever else the template adds is dropped.
        """
        muted = self._messages[answer].get("learn") is False
        _, end = self._own(answer)
        close = self._closing(answer, end)
        learned = [Segment(s.value, True, muted) for s in self.segments(border, close or end)]
        if close is None and answer == len(self._messages) - 1:
            self.ends = self._replaced(end)
            return [*learned, Segment(self._tokenizer.eos_id, True, muted)], len(self.text)
        return learned, close or end

    def segments(self, start: int, end: int) -> list[Segment]:
        """Segments of `text[start:end]`, which cuts no mark, with the texts put in."""
        found: list[Segment] = []
        at = start
        for mark in self._placed:
            if start <= mark.start and mark.end <= end:
                found += self._recognised(self.text[at : mark.start])
                found.append(Segment(mark.text))
                at = mark.end
        return found + self._recognised(self.text[at:end])

    def left_out(self) -> tuple[str, ...]:
        """Roles of the turns whose content is nowhere."""
        return tuple(
            turn["role"]
            for turn in self._turns
            if (marks := numbers_in(turn["content"])) and not self._places.keys() & set(marks)
        )

    def unwritten(self) -> tuple[str, ...]:
        """Fields of turns, and `tools`, without which the template writes the same."""
        fields: list[str] = []
        for message, turn in zip(self._messages, self._turns, strict=True):
            contents = set(numbers_in(turn["content"]))
            if contents & self._places.keys() and contents - self._places.keys():
                fields.append("<think>")
            reasoning = next((name for name in REASONING if name in message), None)
            if reasoning and set(numbers_in(turn[reasoning])) - self._places.keys():
                fields.append(reasoning)
        turns = [_turn(message) for message in self._messages]
        for field in CALLS:
            without = [{k: v for k, v in turn.items() if k != field} for turn in turns]
            if without != turns and self._same(without, self._given_tools):
                fields.append(field)
        if self._given_tools and self._same(turns, None):
            fields.append("tools")
        return tuple(dict.fromkeys(fields))

    def _same(self, turns: Turns, tools: Tools) -> bool:
        try:
            return self._template.text(turns, tools, self._tokenizer) == self._plain
        except UserError:  # It asks for what was taken away.
            return False

    def _answers_stand(self, placed: Sequence[Placed]) -> bool:
        """Whether each answer stands in the output once, in order, unless calls stand for it."""
        order = [mark.number for mark in placed]
        answers: list[int] = []
        for turn in self._turns:
            if turn["role"] == "assistant":
                marks = numbers_in(turn["content"])
                if marks and not turn.get("tool_calls") and not set(marks) & set(order):
                    return False
                answers += marks
        kept = set(order)
        return [n for n in order if n in set(answers)] == [n for n in answers if n in kept]

    def _own(self, answer: int) -> tuple[int, int]:
        """Where in `text` turn `answer` says what it says, calls and reasoning included: where the
        same conversation with one word in their place differs."""
        turn = self._turns[answer]
        if turn.keys() == {"role", "content"} and MARK.fullmatch(turn["content"]):
            place = self._places[numbers_in(turn["content"])[0]]
            return place.start, place.end
        word = self._marks.mark("?")
        turns = [*self._turns]
        turns[answer] = {"role": "assistant", "content": word}
        try:
            other = self._template.text(turns, self._tools, self._tokenizer)
        except UserError:  # Some want calls before the turn of a tool.
            other = ""
        before, found, after = other.partition(word)
        if not found:
            return self._own_by_turns(answer)
        start = self._whole(_shared(self.text, before))[0]
        same = _shared(self.text[::-1], after[::-1])
        return start, max(start, self._end(len(self.text) - same))

    def _own_by_turns(self, answer: int) -> tuple[int, int]:
        before, upto = self._until(answer), self._until(answer + 1)
        if not upto or not upto.startswith(before) or not self.text.startswith(upto):
            raise self._unplaced()
        return len(before), len(upto.rstrip())

    def _end(self, position: int) -> int:
        """`position`, moved out of a mark to its end, and out of a control token to its start."""
        start, end = self._whole(position)
        return end if MARK.fullmatch(self.text[start:end]) else start

    def _whole(self, position: int) -> tuple[int, int]:
        """The mark or control token of which `position` is the inside, else `position` twice."""
        for pattern in (MARK, self._special):
            for found in pattern.finditer(self.text):
                if found.start() < position < found.end():
                    return found.span()
        return position, position

    def _until(self, answer: int, generation: bool = False) -> str:
        """What the template makes of the turns before `answer`; nothing where it refuses to."""
        try:
            turns = self._turns[:answer]
            return self._template.text(turns, self._tools, self._tokenizer, generation)
        except UserError:  # Some refuse to render what does not end with a user's turn.
            return ""

    def _closing(self, answer: int, end: int) -> int | None:
        """The end of the first end-of-turn token after what turn `answer` says."""
        token = self._special.match(self.text, end + _spaces(self.text[end:]))
        if token is not None and self._ends(token[0]):
            return token.end()
        whole = self._until(answer + 1)
        if not self.text.startswith(whole):
            return None
        tokens = self._special.finditer(self.text, end, max(end, len(whole)))
        return next((token.end() for token in tokens if self._ends(token[0])), None)

    def _replaced(self, end: int) -> tuple[str, str] | None:
        """The control token at `end`, in whose place EOS is put, and EOS."""
        token = self._special.match(self.text, end + _spaces(self.text[end:]))
        names = {id_: text for text, id_ in self._tokenizer.special_tokens.items()}
        return None if token is None else (token[0], names.get(self._tokenizer.eos_id, "EOS"))

    def _ends(self, token: str) -> bool:
        return self._tokenizer.special_tokens[token] in self._tokenizer.stop_ids

    def _recognised(self, text: str) -> list[Segment]:
        """Template text with its control tokens recognised."""
        found: list[Segment] = []
        at = 0
        for token in self._special.finditer(text):
            found.append(Segment(text[at : token.start()]))
            found.append(Segment(self._tokenizer.special_tokens[token[0]]))
            at = token.end()
        return [*found, Segment(text[at:])]

    def _unplaced(self) -> UserError:
        return UserError(
            f"{self._template.name}: the template changes what a message says, so the place of the "
            "answers is not known; use another --template"
        )


def _turn(message: Message, marks: Marks | None = None) -> dict[str, Any]:
    """A message as the template is given it, with `marks` in place of its texts. Reasoning goes by
    every name that templates have for it, as in transformers."""
    is_answer = message["role"] == "assistant"
    content = joined_content(message)
    if marks is not None:
        content = marks.mark_answer(content) if is_answer else marks.mark(content)
    turn: dict[str, Any] = {"role": message["role"], "content": content}
    names = [name for name in REASONING if name in message]
    if names:
        text = marks.mark(message[names[0]]) if marks else message[names[0]]
        turn |= dict.fromkeys((*names, "reasoning_content", "thinking"), text)
    called = {field: value for field, value in message.items() if field in CALLS}
    return turn | (marks.guard(called) if marks else called)


def _spaces(text: str) -> int:
    return len(text) - len(text.lstrip())


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
