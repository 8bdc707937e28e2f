"""From template text and contents to ids and labels, the supervised ones known by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from llama.tokenizer.base import IGNORE, Follows, Tokenizer


@dataclass(frozen=True)
class Segment:
    """Text, or the id of one control token; `supervised` where the model is to learn it."""

    value: str | int
    supervised: bool = False


def encode_segments(
    segments: Iterable[Segment], tokenizer: Tokenizer, begin: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """`(input_ids, labels)` of `segments` after the ids `begin` (BOS, or nothing).

    Neighbouring texts are encoded as one, so that ids do not depend on how a template is cut up.
    At the border of prompt and answer they are not: a prompt alone has the ids that it has in
    training.

        text     <user>  Hi  |  there  <end>  <assistant>  \\n || Hello  <end>
        encoded  --one-- ----one-----  -one-  ----one----  one || -one-  -one-
    """
    ids = list(begin)
    labels = [IGNORE] * len(ids)
    follows: Follows = "nothing"
    filled = (segment for segment in segments if segment.value != "")
    for (supervised, is_text), group in groupby(
        filled, key=lambda segment: (segment.supervised, isinstance(segment.value, str))
    ):
        if is_text:
            new = tokenizer.encode("".join(str(segment.value) for segment in group), follows)
        else:
            new = [int(segment.value) for segment in group]
        follows = "text" if is_text else "special"
        ids += new
        labels += new if supervised else [IGNORE] * len(new)
    return ids, labels
