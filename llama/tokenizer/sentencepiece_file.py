"""The tokenizer of LLaMA 1 and 2: a sentencepiece model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from llama.errors import UserError
from llama.files.outside import refused
from llama.notes import note
from llama.tokenizer.added import (
    CONTROL_LIKE,
    AddedToken,
    Splitter,
    place,
    refuse_words,
    trims_of,
)
from llama.tokenizer.base import END_OF_ANSWER, Follows
from llama.tokenizer.llama_class import LLAMA, PrependScheme, prepend_scheme, with_defaults
from llama.tokenizer.sidecar import Sidecar, settle_unplaced

ModelProto: Any = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
"""The protobuf message; its module has no types."""
KINDS: Any = ModelProto.SentencePiece
SPACES = (" ", "\u2581")
Spaces = Literal["own", "each", PrependScheme]
"""Where a space is put before a text: as the model itself says (`own`, sentencepiece's), the same
after each added token (`each`, llama.cpp's for GGUF), or as transformers' class has it."""
OWN = ("own", "each")


class SentencePieceTokenizer:
    """A sentencepiece model, as its protobuf message, with the tokens added beside it.

    User-defined pieces written `<|like_this|>` are made control pieces: sentencepiece finds
    user-defined ones in any text, and control pieces in none, so that no user's words can forge the
    end of a turn. With `spaces` other than `own`, other user-defined pieces are added tokens; with
    those of the class of transformers, texts are not normalised either, as there.

    sentencepiece puts a space before every text it encodes (its "dummy prefix"). A text that goes
    on from another must not get one, and a loaded model cannot be told so: the model is loaded
    twice, with the dummy prefix for texts that begin and without it for texts that go on."""

    def __init__(self, path: Path, proto: Any, beside: Sidecar, spaces: Spaces = "own") -> None:
        """`beside` with `add_bos` and `add_eos` as they are to be; `path` is named in messages.
        Raises `UserError` where the model does not load or has no EOS. `proto` is changed."""
        self._spaces = spaces
        self.added = tuple(_added(path, proto, beside, spaces))
        """The tokens beside the model's own pieces."""
        self.model: bytes = proto.SerializeToString()
        """The model, as in a file `tokenizer.model`."""
        added = self.added
        with refused(path, "is not a usable sentencepiece model; download it again"):
            own_prefix = proto.normalizer_spec.add_dummy_prefix if spaces in OWN else True
            self._begins = _processor(proto, own_prefix)
            self._goes_on = _processor(proto, dummy_prefix=False)
        # Where a model removes the spaces at the start of a text, " word" after other text would
        # lose the space that parts the two. Encoded as a text that begins, it loses that space too
        # but gets the dummy prefix, which is a space again.
        normalizer = proto.normalizer_spec
        self._trims = normalizer.remove_extra_whitespaces and normalizer.add_dummy_prefix
        self._splitter = Splitter(added)
        self._texts = {t.id: t.content for t in added if not t.special}
        self._pieces = len(proto.pieces)
        self.vocab_size = max([self._pieces, *(t.id + 1 for t in added if t.id is not None)])
        self.trims = trims_of(added)
        self.special_tokens = {
            piece.piece: id_
            for id_, piece in enumerate(proto.pieces)
            if piece.type == KINDS.CONTROL
        } | {t.content: t.id for t in added if t.special and t.id is not None}
        bos, eos = beside.named.get("bos_token"), beside.named.get("eos_token")
        self.bos_id = self._id_of(bos, self._begins.bos_id(), beside)
        eos_id = self._id_of(eos, self._begins.eos_id(), beside)
        if eos_id is None:
            raise UserError(f"{path}: has no end-of-sequence piece; give another --tokenizer")
        self.eos_id = eos_id
        ends = [self.special_tokens[text] for text in END_OF_ANSWER if text in self.special_tokens]
        self.stop_ids = frozenset({self.eos_id, *beside.eos_ids, *ends})
        self.text_begins = (self.bos_id,) if beside.add_bos and self.bos_id is not None else ()
        self.text_ends = (self.eos_id,) if beside.add_eos else ()
        names = {id_: text for text, id_ in self.special_tokens.items()}
        own_names = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        self.template_variables = {
            name: names[id_] for name, id_ in own_names.items() if id_ is not None and id_ in names
        } | beside.named
        self.chat_templates = beside.chat_templates

    def _id_of(self, named: str | None, own: int, beside: Sidecar) -> int | None:
        """The id of the token that is named, else the model's own, if it has one."""
        if named is not None:
            return self.special_tokens[named]
        return own if own >= 0 and not beside.configured else None

    def encode(self, text: str, follows: Follows = "nothing") -> list[int]:
        """Ids of `text`, without BOS or EOS."""
        ids: list[int] = []
        for part in self._splitter.split(text):
            if isinstance(part, int):
                ids.append(part)
                follows = "special"
            else:
                ids += self._processor_for(part, follows).encode(part)
                follows = "text"
        return ids

    def _processor_for(self, text: str, follows: Follows) -> SentencePieceProcessor:
        if self._spaces in OWN:
            goes_on = follows == "text" and not (self._trims and text.startswith(" "))
        else:
            goes_on = (
                follows == "text"
                or self._spaces == "never"
                or (self._spaces == "first" and follows == "special")
                or text.startswith(SPACES)
            )
        return self._goes_on if goes_on else self._begins

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control pieces, and ids beyond the vocabulary, give none."""
        control = set(self.special_tokens.values())
        texts = [i for i in ids if i < self.vocab_size and i not in control]
        decoded: list[str] = []
        for is_added, group in groupby(texts, key=self._texts.__contains__):
            if is_added:
                decoded += [self._texts[id_] for id_ in group]
            else:
                processor = self._goes_on if decoded or self._spaces == "never" else self._begins
                decoded.append(processor.decode([i for i in group if i < self._pieces]))
        return "".join(decoded)


def load_sentencepiece(path: Path, proto: Any, beside: Sidecar) -> SentencePieceTokenizer:
    """The tokenizer of `proto`, read from `path`. Without tokenizer_config.json it is Meta's own:
    sentencepiece's spaces, and BOS before a text. With one it is what transformers makes of the
    two, where its class is LlamaTokenizer. UserError for another class: what that does with spaces
    is not known here."""
    if beside.tokenizer_class not in (None, LLAMA):
        raise UserError(
            f"{beside.source}: its class is {beside.tokenizer_class}, and of sentencepiece models "
            f"only {LLAMA} is known here; give the model's tokenizer.json with --tokenizer"
        )
    if not beside.configured:
        return SentencePieceTokenizer(
            path, proto, replace(beside, add_bos=beside.add_bos is not False)
        )
    if beside.add_bos is None:
        note(f"{beside.source}: says nothing of `add_bos_token`: plain texts get no BOS")
    if beside.tokenizer_class is None:
        note(
            f"{beside.source}: names no `tokenizer_class`: {LLAMA} is taken, for which models with "
            "a sentencepiece tokenizer of the LLaMA kind are made"
        )
    beside = with_defaults(beside)
    return SentencePieceTokenizer(path, proto, beside, prepend_scheme(beside))


def _added(path: Path, proto: Any, beside: Sidecar, spaces: Spaces) -> list[AddedToken]:
    """The tokens beside the model and, where transformers has them so, its user-defined pieces."""
    pieces = {piece.piece: id_ for id_, piece in enumerate(proto.pieces)}
    placed = place(beside.added, pieces, len(proto.pieces), beside.source)
    refuse_words(placed, beside.source)
    settle_unplaced(path, placed, pieces, beside)
    known = {token.content for token in placed}
    for id_, piece in enumerate(proto.pieces):
        if piece.type != KINDS.USER_DEFINED:
            continue
        if CONTROL_LIKE.fullmatch(piece.piece):
            piece.type = KINDS.CONTROL
        elif spaces != "own" and piece.piece not in known:
            placed.append(AddedToken(piece.piece, special=False, id=id_))
    if spaces not in OWN:
        normalizer = proto.normalizer_spec
        normalizer.name, normalizer.precompiled_charsmap = "identity", b""
        normalizer.remove_extra_whitespaces = False
    return placed


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
