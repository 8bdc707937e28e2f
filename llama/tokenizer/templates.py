"""The formats a conversation can be written in, and which one a model gets."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from llama.errors import UserError
from llama.files.outside import TOKENIZER_BYTES, read_bytes, refused
from llama.tokenizer.base import REASONING, Message, Template, Tokenizer, Tools, Written
from llama.tokenizer.built_in_templates import (
    ALPACA,
    ALPACA_ALONE,
    ALPACA_WITH_INPUT,
    BUILT_IN,
    CHATML,
    CHATML_BEGIN,
    TEMPLATES,
)
from llama.tokenizer.chat import CALLS, ChatTemplate
from llama.tokenizer.named_templates import DEFAULT, choose
from llama.tokenizer.segments import Segment, encode_segments, lost_characters


class AlpacaTemplate(Template):
    """Stanford Alpaca's prompt, then the answer, then EOS.

    A system message takes the place of the introduction. Each later turn goes on after EOS with
    `### Instruction:`. Any user turn is an instruction, so a prompt alone (`prompt`/`completion`
    rows, `generate --prompt`) is one without input.
    """

    name = "alpaca"

    def write(
        self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Tools = None
    ) -> Written:
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
        if last < 0:
            raise UserError("alpaca: the conversation has no assistant turn")
        segments = self._segments(messages[: last + 1], tokenizer)
        ids, labels = encode_segments(segments, tokenizer, tokenizer.text_begins)
        text = "".join(segment.value for segment in segments if isinstance(segment.value, str))
        given = {field for message in messages[: last + 1] for field in message}
        unwritten = [field for field in (*REASONING, *CALLS) if field in given]
        unwritten += ["tools"] if tools else []
        lost = lost_characters(text, ids, tokenizer)
        return Written(ids, labels, unwritten=tuple(unwritten), lost=lost)

    def prompt(
        self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Tools = None
    ) -> list[int]:
        segments = self._segments(messages, tokenizer)
        return encode_segments(segments, tokenizer, tokenizer.text_begins)[0]

    def jinja(self, tokenizer: Tokenizer) -> str:
        return ("{{- bos_token }}\n" if tokenizer.text_begins else "") + ALPACA

    def _segments(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Segment]:
        segments: list[Segment] = []
        introduction: str | None = None
        expected = "user"
        for i, message in enumerate(messages):
            content, given = message["content"], message.get("input")
            if i == 0 and message["role"] in ("system", "developer"):
                introduction = content
                continue
            if message["role"] != expected:
                raise UserError(f"alpaca: turn {i + 1} is {message['role']}, not {expected}")
            if message["role"] == "assistant":
                if "tool_calls" in message:
                    raise UserError(f"alpaca: turn {i + 1} has tool_calls, which it cannot write")
                muted = message.get("learn") is False
                answer = (content, tokenizer.eos_id)
                segments += [Segment(value, True, muted) for value in answer]
                expected = "user"
                continue
            if not segments:
                introduction = introduction or (ALPACA_WITH_INPUT if given else ALPACA_ALONE)
                segments.append(Segment(f"{introduction}\n\n"))
            segments.append(Segment(f"### Instruction:\n{content}\n\n"))
            segments.append(Segment(f"### Input:\n{given}\n\n" if given else ""))
            segments.append(Segment("### Response:"))
            expected = "assistant"
        return segments


def load_template(name_or_path: str | None, tokenizer: Tokenizer) -> Template:
    """The template of that name, the model's own before those here, or in that Jinja file. None:
    the model's default where it has chat templates, else `alpaca`. Raises UserError."""
    own = choose(tokenizer.chat_templates, name_or_path)
    if own is not None:
        name, source = own
        kind = "" if name == DEFAULT else f" {name}"
        return ChatTemplate(f"the model's chat template{kind}", source)
    if name_or_path is None or name_or_path == "alpaca":
        return AlpacaTemplate()
    if name_or_path in BUILT_IN:
        source, needed = BUILT_IN[name_or_path]
        missing = [token for token in needed if token not in tokenizer.special_tokens]
        if missing:
            raise UserError(
                f"template {name_or_path}: the tokenizer has no token {', '.join(missing)}; "
                "use --template alpaca"
            )
        begins = source is CHATML and tokenizer.text_begins
        return ChatTemplate(name_or_path, CHATML_BEGIN + source if begins else source)
    path = Path(name_or_path)
    names = (*TEMPLATES, *tokenizer.chat_templates)
    if path.name == name_or_path and not os.path.exists(path):
        close = difflib.get_close_matches(name_or_path, names, n=1)
        raise UserError(
            f"--template: expected one of {', '.join(names)}, or a Jinja file, found "
            f"{name_or_path!r}" + (f"; did you mean {close[0]}?" if close else "")
        )
    what = f"a Jinja file or one of {', '.join(names)}"
    return ChatTemplate(str(path), _source(path, what))


def written_template(file: Path, name: str, tokenizer: Tokenizer) -> Template:
    """The template in `file`, which `Template.jinja` gave of one called `name`: `alpaca` as it is
    here, where the file has not been changed since. Raises UserError."""
    source, alpaca = _source(file, "a Jinja chat template"), AlpacaTemplate()
    return alpaca if source == alpaca.jinja(tokenizer) else ChatTemplate(name, source)


def _source(path: Path, what: str) -> str:
    data = read_bytes(path, what, TOKENIZER_BYTES)
    with refused(path, f"is not UTF-8 text; give {what}"):
        return data.decode("utf-8-sig")
