"""What every tokenizer here offers, whatever file it was read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict

Tools = Sequence[Any] | None

Follows = Literal["nothing", "special", "text"]
"""What stands before a text: nothing (or BOS alone), a control token, or more text."""

IGNORE = -100
"""The label of a position that is not supervised."""

END_OF_ANSWER = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
)
"""Control tokens that end an answer in the known chat formats, besides a model's own EOS."""


Role = Literal["system", "developer", "user", "assistant", "tool"]
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message holds what was thought before the answer."""


class Turn(TypedDict):
    """What every message has."""

    role: Role
    content: str


class Message(Turn, total=False):
    """One turn of a conversation."""

    input: str
    """What the instruction in `content` works on, where a row keeps the two apart (Alpaca)."""
    reasoning_content: str
    thinking: str
    reasoning: str
    tool_calls: list[dict[str, Any]]
    name: str
    tool_call_id: str
    learn: bool
    """False on an assistant turn that is context and is not learnt."""


@dataclass(frozen=True)
class Written:
    """A conversation as ids, and what of it the ids do not say."""

    ids: list[int]
    labels: list[int]
    """As `ids` where supervised, else -100."""
    left_out: tuple[str, ...] = ()
    """Roles of the turns, one for each, whose content the template does not write."""
    unwritten: tuple[str, ...] = ()
    """Fields of turns, and `tools`, that the template does not write."""
    lost: int = 0
    """Characters for which the tokenizer gave no token."""
    ends: tuple[str, str] | None = None
    """The control token that the template writes after the last answer and that ends none to this
    tokenizer, and EOS, which stands in its place."""


class Template(Protocol):
    """Writes conversations as ids. The ids of a prompt are the same in `write` and `prompt`, and
    text that looks like a control token is one in no message.

    `tools` are the functions that the model may call, as a row's `tools` describes them.
    """

    name: str

    def write(
        self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Tools = None
    ) -> Written:
        """Supervised is what the format writes of every assistant turn that is to be learnt, and
        the token that ends it. What follows the last assistant turn is left out. Raises UserError
        where the format cannot express `messages`."""
        ...

    def prompt(
        self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Tools = None
    ) -> list[int]:
        """Ids up to where the assistant's next turn begins."""
        ...

    def jinja(self, tokenizer: Tokenizer) -> str:
        """The format as a Jinja chat template, for other programs: with `tokenizer` it writes the
        same texts."""
        ...

    def render(
        self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Tools = None
    ) -> tuple[list[int], list[int]]:
        """`(input_ids, labels)` of `write`."""
        written = self.write(messages, tokenizer, tools)
        return written.ids, written.labels


class Tokenizer(Protocol):
    """Text to token ids and back. `encode` adds no BOS or EOS and never interprets text that looks
    like a special token: only `special_id` names those."""

    vocab_size: int
    """One more than the largest id it can give."""
    bos_id: int | None
    eos_id: int
    stop_ids: frozenset[int]
    """Ids that end an answer: EOS and any end-of-turn token of the chat format."""
    text_begins: tuple[int, ...]
    """Ids that its files put before a text on its own: BOS, or nothing."""
    text_ends: tuple[int, ...]
    """Those that they put after it."""
    chat_templates: dict[str, str]
    """The model's own Jinja chat templates by name; a single one is `default`."""
    template_variables: dict[str, str]
    """What its templates can name: `bos_token`, `eos_token` and the like, to the token's text."""
    special_tokens: dict[str, int]
    """Text of each control token to its id, e.g. `<|im_start|>` or `<s>`."""
    trims: dict[int, tuple[bool, bool]]
    """Of the control tokens, those that take the white space before and after them."""

    def encode(self, text: str, follows: Follows = "nothing") -> list[int]:
        """Ids of `text`, to be placed after `follows`: sentencepiece writes a space before a text
        that begins, and none before one that goes on."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control tokens give no text."""
        ...
