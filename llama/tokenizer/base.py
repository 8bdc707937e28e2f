"""What every tokenizer here offers, whatever file it was read from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict

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


class Turn(TypedDict):
    """What every message has."""

    role: Literal["system", "user", "assistant"]
    content: str


class Message(Turn, total=False):
    """One turn of a conversation."""

    input: str
    """What the instruction in `content` works on, where a row keeps the two apart (Alpaca)."""


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
