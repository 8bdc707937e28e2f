"""The tokenizer of LLaMA 1 and 2: a sentencepiece model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from llama.errors import UserError
from llama.files.outside import refused
from llama.tokenizer.base import END_OF_ANSWER, Follows

ModelProto: Any = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
"""The protobuf message; its module has no types."""
CONTROL_LIKE = re.compile(r"<\|.*\|>")
"""Pieces that users add for chat formats, often without marking them as control tokens."""


class SentencePieceTokenizer:
    """A sentencepiece model, as its protobuf message.

    User-defined pieces written `<|like_this|>` are made control pieces: sentencepiece finds
    user-defined ones in any text, and control pieces in none, so that no user's words can forge the
    end of a turn.

    sentencepiece puts a space before every text it encodes (its "dummy prefix"). A text that goes
    on from another must not get one, and a loaded model cannot be told so: the model is loaded
    twice, with the dummy prefix for texts that begin and without it for texts that go on."""

    def __init__(
        self,
        path: Path,
        proto: Any,
        bos: str | None = None,
        eos: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        """`bos` and `eos` name the pieces to be taken where they are not the model's own; `path` is
        named in messages. Raises `UserError` where the model does not load or has no EOS. `proto`
        is changed."""
        kinds = ModelProto.SentencePiece
        for piece in proto.pieces:
            if piece.type == kinds.USER_DEFINED and CONTROL_LIKE.fullmatch(piece.piece):
                piece.type = kinds.CONTROL
        with refused(path, "is not a usable sentencepiece model; download it again"):
            self._begins = _processor(proto, dummy_prefix=proto.normalizer_spec.add_dummy_prefix)
            self._goes_on = _processor(proto, dummy_prefix=False)
        # Where a model removes the spaces at the start of a text, " word" after other text would
        # lose the space that parts the two. Encoded as a text that begins, it loses that space too
        # but gets the dummy prefix, which is a space again.
        normalizer = proto.normalizer_spec
        self._trims = normalizer.remove_extra_whitespaces and normalizer.add_dummy_prefix
        self.vocab_size = len(proto.pieces)
        self.special_tokens = {
            piece.piece: id_
            for id_, piece in enumerate(proto.pieces)
            if piece.type == kinds.CONTROL
        }
        own_bos, own_eos = self._begins.bos_id(), self._begins.eos_id()
        self.bos_id = self.special_tokens.get(bos or "", own_bos if own_bos >= 0 else None)
        self.eos_id = int(self.special_tokens.get(eos or "", own_eos))
        if self.eos_id < 0:
            raise UserError(f"{path}: has no end-of-sequence piece; give another --tokenizer")
        ends = [self.special_tokens[text] for text in END_OF_ANSWER if text in self.special_tokens]
        self.stop_ids = frozenset({self.eos_id, *ends})
        self.chat_template = chat_template

    def encode(self, text: str, follows: Follows = "nothing") -> list[int]:
        """Ids of `text`, without BOS or EOS."""
        goes_on = follows == "text" and not (self._trims and text.startswith(" "))
        return (self._goes_on if goes_on else self._begins).encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control pieces, and ids beyond the vocabulary, give none."""
        control = set(self.special_tokens.values())
        return self._begins.decode([i for i in ids if i < self.vocab_size and i not in control])


def parse_sentencepiece(data: bytes) -> Any | None:
    """The protobuf message in `data`, or None where it is no sentencepiece model."""
    try:
        proto = ModelProto.FromString(data)
    except Exception:
        return None
    return proto if len(proto.pieces) > 0 else None


def _processor(proto: Any, dummy_prefix: bool) -> SentencePieceProcessor:
    """The model loaded with its dummy prefix on or off."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.normalizer_spec.add_dummy_prefix = dummy_prefix
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(copy.SerializeToString())
    return processor
