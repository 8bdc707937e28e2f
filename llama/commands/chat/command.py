"""`launcher/chat.py`: a conversation with a model, or with a model and its adapter beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llama.assembly.adapter import open_for_use
from llama.assembly.model import ready_model
from llama.assembly.use import sides
from llama.commands.chat.conversation import ANEW, Conversation
from llama.commands.chat.layout import NARROWEST
from llama.commands.chat.reading import HOW_TO_LEAVE, Reader, at_terminal, reader, without_echo
from llama.commands.chat.showing import show
from llama.commands.chat.slash import obeyed
from llama.commands.chat.speaker import Speaker
from llama.commands.chat.stopping import StopKey
from llama.commands.terminal import paragraph, this_terminal
from llama.errors import UserError, raise_if
from llama.launch.streams import lost_output
from llama.model.decoding import Sampling, Session
from llama.notes import say
from llama.settings import ChatOptions, check_chat

REFUSED = 2
"""The status where a line of a file or pipe could not be answered."""


def chat(options: ChatOptions) -> int:
    """Answer messages until there are no more. Raises `UserError` before any weights load; what
    cannot be answered later is said in a line, and ends nothing."""
    raise_if(check_chat(options))
    opened = open_for_use(options)
    config, tokenizer = opened.source.config, opened.tokenizer
    template = opened.template(options.template)
    Conversation(template, tokenizer, config, options.system).prompt("Hello")
    model = ready_model(opened.source, opened.adapter, options.precision, base=options.base)
    speakers = [
        Speaker(
            name,
            Session(model),
            tokenizer,
            Conversation(template, tokenizer, config, options.system),
            as_self,
        )
        for name, as_self in sides(model, opened.adapter is not None, options.compare).items()
    ]
    sampling = Sampling(options.temperature, options.top_p, options.seed)
    talk = Talk(reader(), speakers, options.max_new_tokens, sampling)
    if not at_terminal():
        return talk.go_on()
    tell(opened.source.name + (f" with {opened.adapter}" if opened.adapter else ""))
    tell(f"/help lists the commands; {HOW_TO_LEAVE}")
    with talk.stop:
        return talk.go_on()


class Talk:
    """Messages in, answers out."""

    def __init__(
        self,
        reader: Reader,
        speakers: Sequence[Speaker],
        max_new_tokens: int,
        sampling: Sampling,
    ) -> None:
        self._reader = reader
        self.stop = StopKey()
        self._speakers = speakers
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._is_seen = at_terminal()
        self._refused = False

    def go_on(self) -> int:
        """Answer until the reader ends; the exit status."""
        while lost_output() is None:
            try:
                self._take(self._reader.read())
            except EOFError:
                break
            except UserError as error:
                self._refuse(error.problems)
        return REFUSED if self._refused and not self._is_seen else 0

    def _take(self, text: str) -> None:
        said = obeyed(text, [speaker.conversation for speaker in self._speakers])
        if said is not None:
            tell(said)
            return
        try:
            self._answer(text.strip())
        except KeyboardInterrupt:
            if not self._is_seen:
                raise
            tell("stopped")
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            self._refuse([f"memory is full: the conversation is too long to answer; {ANEW}"])

    def _answer(self, message: str) -> None:
        answers = {
            speaker.name: speaker.answer(message, self._max_new_tokens, self._sampling)
            for speaker in self._speakers
        }
        with without_echo():
            show(answers, this_terminal(NARROWEST) if self._is_seen else None, self.stop)
        for speaker in self._speakers:
            if speaker.cut_by is not None:
                name = f"{speaker.name}: " * (len(self._speakers) > 1)
                tell(name + speaker.cut_by)

    def _refuse(self, problems: Sequence[str]) -> None:
        self._refused = True
        for problem in problems:
            tell(f"error: {self._reader.place}{problem}")


def tell(text: str) -> None:
    """Lines about the conversation on standard error, none wider than a terminal."""
    if at_terminal():
        terminal = this_terminal(NARROWEST)
        text = "\n".join(paragraph(line, terminal) for line in text.split("\n"))
    say(text)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch has a class for this on a GPU, and none on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
