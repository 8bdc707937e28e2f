"""From template text and contents to ids and labels, the supervised ones known by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from llama.tokenizer.base import IGNORE, Follows, Tokenizer


@dataclass(frozen=True)
class Segment:
    """Text, or the id of one control token; `supervised` where the model is to learn it."""

    value: str | int
    supervised: bool = False
    muted: bool = False
    """Of an answer that is not to be learnt: it has the ids that it would have if it were."""


def encode_segments(
    segments: Iterable[Segment], tokenizer: Tokenizer, begin: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """`(input_ids, labels)` of `segments` after the ids `begin` (BOS, or nothing).

    Neighbouring texts are encoded as one, so that ids do not depend on how a template is cut up.
    At the border of prompt and answer they are not: a prompt alone has the ids that it has in
    training. A control token that takes the white space beside it (`lstrip`, `rstrip` of its file)
    takes it from the texts on either side.

        text     <user>  Hi  |  there  <end>  <assistant>  \\n || Hello  <end>
        encoded  --one-- ----one-----  -one-  ----one----  one || -one-  -one-
    """
    ids = list(begin)
    labels = [IGNORE] * len(ids)
    follows: Follows = "nothing"
    filled = _trimmed([segment for segment in segments if segment.value != ""], tokenizer.trims)
    for (supervised, muted, is_text), group in groupby(
        filled, key=lambda s: (s.supervised, s.muted, isinstance(s.value, str))
    ):
        if is_text:
            new = tokenizer.encode("".join(str(segment.value) for segment in group), follows)
        else:
            new = [int(segment.value) for segment in group]
        follows = "text" if is_text else "special"
        ids += new
        labels += new if supervised and not muted else [IGNORE] * len(new)
    return ids, labels


def lost_characters(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Characters of `text` that its `ids` do not give back. Spaces that a tokenizer puts before a
    text of its own accord are no loss."""
    given_back = tokenizer.decode(ids)
    return 0 if given_back == text else (Counter(text) - Counter(given_back)).total()


def _trimmed(segments: list[Segment], trims: dict[int, tuple[bool, bool]]) -> list[Segment]:
    """`segments` without the white space that control tokens take, however many texts it spans."""
    values = [segment.value for segment in segments]
    for at, value in enumerate(values):
        before, after = (
            trims.get(value, (False, False)) if isinstance(value, int) else (False, False)
        )
        if before:
            _strip(values, range(at - 1, -1, -1), str.rstrip)
        if after:
            _strip(values, range(at + 1, len(values)), str.lstrip)
    pairs = zip(values, segments, strict=True)
    return [replace(segment, value=value) for value, segment in pairs if value != ""]


def _strip(values: list[str | int], places: Iterable[int], strip: Callable[[str], str]) -> None:
    """Strip the texts at `places`, up to the first of which something is left."""
    for at in places:
        value = values[at]
        if not isinstance(value, str):
            return
        values[at] = stripped = strip(value)
        if stripped:
            return


def plain_text(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text on its own, as its tokenizer's files have it begin and end; EOS ends it, since
    a model is to learn where texts end."""
    ids = [*tokenizer.text_begins, *tokenizer.encode(text), *tokenizer.text_ends]
    return ids if tokenizer.text_ends[-1:] == (tokenizer.eos_id,) else [*ids, tokenizer.eos_id]
