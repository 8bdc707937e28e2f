"""Jinja chat templates, rendered so that the place of every answer is known.

A template is given a mark in place of each content, and the contents are put in afterwards: so no
search for the answer is needed, and special-token text is recognised in the template alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from llama.errors import UserError
from llama.tokenizer.base import Message, Tokenizer
from llama.tokenizer.jinja_sandbox import compile_template
from llama.tokenizer.segments import Segment, encode_segments

EDGE = "\x1c"
"""Whitespace to `str.strip`, so its absence after rendering shows that the template trims."""


def joined_content(message: Message) -> str:
    """The content, with what an instruction works on after it."""
    given = message.get("input")
    return f"{message['content']}\n\n{given}" if given else message["content"]


class ChatTemplate:
    """A Jinja chat template. `render` and `prompt` are as `templates.Template` says."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self._render = compile_template(source, name)

    def render(
        self, messages: Sequence[Message], tokenizer: Tokenizer
    ) -> tuple[list[int], list[int]]:
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise UserError(f"{self.name}: the conversation has no assistant turn")
        page = _Page(self, messages[: answers[-1] + 1], tokenizer)
        segments: list[Segment] = []
        at = 0
        for answer in answers:
            border = page.border(answer)
            segments += page.segments(at, border)
            learned, at = page.answer(answer, border)
            segments += learned
        segments += page.segments(at, len(page.text))
        return encode_segments(segments, tokenizer)

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        page = _Page(self, [*messages, {"role": "assistant", "content": "?"}], tokenizer)
        return encode_segments(page.segments(0, page.border(len(messages))), tokenizer)[0]

    def text(
        self,
        messages: Sequence[Message],
        contents: Sequence[str],
        tokenizer: Tokenizer,
        generation: bool = False,
    ) -> str:
        """What the template makes of `messages` with `contents` in place of their own."""
        turns = [
            {"role": message["role"], "content": content}
            for message, content in zip(messages, contents, strict=True)
        ]
        variables: dict[str, Any] = {
            "messages": turns,
            **tokenizer.template_variables,
            "add_generation_prompt": generation,
        }
        return self._render(variables)


class _Page:
    """One conversation as the template renders it, with marks in place of the contents."""

    def __init__(
        self, template: ChatTemplate, messages: Sequence[Message], tokenizer: Tokenizer
    ) -> None:
        self._template = template
        self._messages = messages
        self._tokenizer = tokenizer
        self._contents = [joined_content(message) for message in messages]
        self._special = _special_pattern(tuple(tokenizer.special_tokens))
        self._marks = [f"{EDGE}#content:{i}#{EDGE}" for i in range(len(messages))]
        indices = "|".join(map(str, range(len(messages))))
        self._mark = re.compile(f"({EDGE}?)#content:({indices})#({EDGE}?)")
        self.text = template.text(messages, self._marks, tokenizer)
        found = [(int(mark[2]), mark.span()) for mark in self._mark.finditer(self.text)]
        self._spans = dict(found)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        in_order = answers == [i for i, _ in found if i in answers]
        plain = self._mark.sub(self._content, self.text)
        if not in_order or plain != template.text(messages, self._contents, tokenizer):
            raise UserError(
                f"{template.name}: the template changes what a message says, so the place of the "
                "answers is not known; use another --template"
            )

    def border(self, answer: int) -> int:
        """Where the prompt of turn `answer` ends: where the template's own generation prompt does,
        else at the content, with the spaces before it left to the answer."""
        start = self._spans[answer][0]
        try:
            prompt = self._template.text(
                self._messages[:answer], self._marks[:answer], self._tokenizer, generation=True
            )
        except UserError:  # Some refuse to render what does not end with a user's turn.
            prompt = ""
        is_prefix = len(prompt) <= start and self.text.startswith(prompt)
        if prompt and is_prefix and not self.text[len(prompt) : start].strip(" "):
            return len(prompt)
        return len(self.text[:start].rstrip(" "))

    def answer(self, answer: int, border: int) -> tuple[list[Segment], int]:
        """The supervised segments of turn `answer`, and where the text after them begins.

        The turn ends with the token that the template writes after it; where it writes none after
        the last turn, EOS is put there and whatever else the template adds is dropped.
        """
        end = self._spans[answer][1]
        following = self._mark.search(self.text, end)
        close = self._closing(end, following.start() if following else len(self.text))
        learned = [Segment(s.value, True) for s in self.segments(border, close or end)]
        if close is None and following is None:
            return [*learned, Segment(self._tokenizer.eos_id, True)], len(self.text)
        return learned, close or end

    def segments(self, start: int, end: int) -> list[Segment]:
        """Segments of `text[start:end]`, which cuts no mark, with the contents put in."""
        found: list[Segment] = []
        at = start
        for mark in self._mark.finditer(self.text, start, end):
            found += self._recognised(self.text[at : mark.start()])
            found.append(Segment(self._content(mark)))
            at = mark.end()
        return found + self._recognised(self.text[at:end])

    def _closing(self, start: int, end: int) -> int | None:
        """The end of the end-of-turn token that `text[start:end]` begins with, spaces aside."""
        tail = self.text[start:end]
        spaces = len(tail) - len(tail.lstrip())
        token = self._special.match(tail, spaces)
        if (
            token is None
            or self._tokenizer.special_tokens[token[0]] not in self._tokenizer.stop_ids
        ):
            return None
        return start + token.end()

    def _recognised(self, text: str) -> list[Segment]:
        """Template text with its control tokens recognised."""
        found: list[Segment] = []
        at = 0
        for token in self._special.finditer(text):
            found.append(Segment(text[at : token.start()]))
            found.append(Segment(self._tokenizer.special_tokens[token[0]]))
            at = token.end()
        return [*found, Segment(text[at:])]

    def _content(self, mark: re.Match[str]) -> str:
        """The content that belongs at a mark, trimmed on the sides where the mark was."""
        content = self._contents[int(mark[2])]
        content = content if mark[1] else content.lstrip()
        return content if mark[3] else content.rstrip()


@lru_cache(maxsize=8)
def _special_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of `tokens`, the longest first, and nothing where there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
