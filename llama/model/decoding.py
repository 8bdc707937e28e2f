"""Writing texts one token at a time, several at once, with a KV cache.

Top-p: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from llama.kernels.products import compute_dtype
from llama.model.documents import Documents
from llama.model.kv_cache import KVCache
from llama.model.transformer import Transformer

READ_AT_ONCE = 8192
"""Tokens of prompts that one forward pass reads, so that many long ones do not need memory for all
at a time. A longer prompt is read alone."""
ROOM_AHEAD = 256
"""Tokens to be written that the cache has room for from the beginning: with more room passes that
are recorded for it (`SteppedCache`) read more of it, with less it grows more often."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: at temperature 0 the likeliest, else drawn from the smallest
    set of tokens that holds `top_p` of the probability."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


Agreed = Callable[[list[int]], list[int]]
"""This rank's choices of tokens, one for each text, to those that all ranks take."""


def own(tokens: list[int]) -> list[int]:
    """The choices of a model that nobody else has a part of."""
    return tokens


class Session:
    """One text after another that mostly begin alike, as the turns of a conversation do.

        session = Session(model)
        for token in session.answer(ids, 256, tokenizer.stop_ids, sampling):
            ...                          # may be left at any token, by `break` or an exception

    `ids` is the whole conversation each time, as the template writes it. What it has in common with
    the tokens read before, those of the last answer among them, is not read again; a history that
    was changed is read from where it differs. So nothing has to be told of a turn that was stopped,
    a new system prompt or an empty history."""

    def __init__(self, model: Transformer, agreed: Agreed = own) -> None:
        self._writing = _Writing(model, agreed)
        self._writing.cache.open(1)
        self._held: list[int] = []

    def answer(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        stop_ids: frozenset[int],
        sampling: Sampling,
    ) -> Iterator[int]:
        """Yield tokens that follow `ids` (at least one token), up to `max_new_tokens` or a stop
        token, which is not yielded."""
        common = _common(self._held, ids[:-1])  # the last is read for what follows it
        self._writing.cache.keep(0, common)
        self._held = self._held[:common]
        self._writing.cache.reserve(1, len(ids) + min(max_new_tokens, ROOM_AHEAD))
        text = self._writing.text(0, ids[common:], sampling)
        for _ in range(max_new_tokens):
            read = list(text.unread)
            (token,) = self._writing.next([text])
            self._held += read
            if token in stop_ids:
                return
            yield token


def decode(
    model: Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_ids: frozenset[int],
    sampling: Sampling,
    agreed: Agreed = own,
) -> Iterator[int]:
    """Yield tokens that follow `prompt` (at least one token), up to `max_new_tokens` or a stop
    token, which is not yielded. The prompt is read once; each token then costs one position.

    Where a model is spread over ranks, all are in every forward pass. Their logits may differ by
    rounding, and with them a choice or the end: `agreed` has all take the same."""
    return Session(model, agreed).answer(prompt, max_new_tokens, stop_ids, sampling)


@dataclass(frozen=True)
class Written:
    """A text that is done."""

    index: int
    """Of the prompt that it follows."""
    tokens: list[int]
    stopped: bool
    """Whether the model ended it, and not the number of tokens asked for."""


def decode_together(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: frozenset[int],
    sampling: Sampling,
    batch: int,
    agreed: Agreed = own,
) -> Iterator[Written]:
    """Yield what `decode` writes after each of `prompts`, in the order in which they are done, up
    to `batch` of them at a time: where one is done, the next prompt takes its place.

    Each sees itself alone, and draws from the seed as if it were alone. Only rounding depends on
    how many a product is taken of, so that two tokens as likely as one another to the last digits
    may be chosen differently. `agreed` is as in `decode`."""
    writing = _Writing(model, agreed)
    longest = max(map(len, prompts[:batch]), default=0)
    writing.cache.reserve(min(batch, len(prompts)), longest + min(max_new_tokens, ROOM_AHEAD))
    waiting = deque(writing.text(i, prompt, sampling) for i, prompt in enumerate(prompts))
    texts: list[_Text] = []
    """In the order of the cache's sequences."""
    while waiting or texts:
        new = _first(waiting, batch - len(texts))
        writing.cache.open(len(new))
        texts += new
        reading = new or texts
        first = len(texts) - len(reading)
        tokens = writing.next(reading)
        for at in reversed(range(len(reading))):  # from the last, as the last takes a closed place
            text, token = reading[at], tokens[at]
            if token not in stop_ids:
                text.written.append(token)
            if token in stop_ids or len(text.written) == max_new_tokens:
                writing.cache.close(first + at)
                texts[first + at] = texts[-1]
                texts.pop()
                yield Written(text.index, text.written, token in stop_ids)


@dataclass
class _Text:
    """One that is being written."""

    index: int
    unread: Sequence[int]
    """Tokens that the model is to read next."""
    sampling: Sampling
    generator: torch.Generator
    """Its own, so that what is drawn does not depend on what is written beside it."""
    written: list[int] = field(default_factory=list)


class _Writing:
    """A model, what it has read, and how ranks agree."""

    def __init__(self, model: Transformer, agreed: Agreed) -> None:
        weight = model.tok_embeddings.weight
        heads = model.config.n_kv_heads // model.tok_embeddings.tp.size  # this rank's
        self.cache = KVCache(model.config, compute_dtype(weight), weight.device, heads)
        self._model = model
        self._agreed = agreed
        self._device = weight.device

    def text(self, index: int, unread: Sequence[int], sampling: Sampling) -> _Text:
        generator = torch.Generator(self._device).manual_seed(sampling.seed)
        return _Text(index, unread, sampling, generator)

    @torch.no_grad()
    def next(self, texts: Sequence[_Text]) -> list[int]:
        """Read what is unread of `texts`, the last sequences of the cache. The token that follows
        each is chosen, and is then what is unread."""
        added = self.cache.begin([len(text.unread) for text in texts])
        unread = [token for text in texts for token in text.unread]
        tokens_T = torch.tensor(unread, dtype=torch.int64, device=self._device)
        logits_MV = self._model(
            tokens_T, added.positions_T, added.documents, cache=self.cache, last=True
        )
        tokens = self._agreed(_chosen(logits_MV, texts))
        for text, token in zip(texts, tokens, strict=True):
            text.unread = [token]
        return tokens


def _chosen(logits_MV: torch.Tensor, texts: Sequence[_Text]) -> list[int]:
    """The token that follows each of `texts`. The likeliest are found and brought to the host all
    at once: the wait for a GPU is as long as one for a single token."""
    if all(text.sampling.temperature == 0.0 for text in texts):
        return logits_MV.argmax(dim=-1).tolist()
    return [
        choose(logits_V, text.sampling, text.generator)
        for logits_V, text in zip(logits_MV.float(), texts, strict=True)
    ]


def _first(waiting: deque[_Text], most: int) -> list[_Text]:
    """Those to be read next, taken off `waiting`: up to `most`, as many as are read at once."""
    taken: list[_Text] = []
    size = 0
    while waiting and len(taken) < most:
        size += len(waiting[0].unread)
        if taken and size > READ_AT_ONCE:
            break
        taken.append(waiting.popleft())
    return taken


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` begin with alike."""
    same = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        same += 1
    return same


def decode_without_cache(model: Transformer, prompt: Sequence[int], tokens: int) -> list[int]:
    """The plain reference for `decode` at temperature 0: every token reads the whole text again."""
    ids = list(prompt)
    device = model.tok_embeddings.weight.device
    with torch.no_grad():
        for _ in range(tokens):
            text = torch.tensor(ids, device=device)
            positions = torch.arange(len(ids), device=device)
            logits = model(text, positions, Documents((0, len(ids))), last=True)
            ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :]


def choose(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from float32 logits."""
    if sampling.temperature == 0.0:
        return int(logits_V.argmax())
    # Taken away before the division, the largest logit stays 0 however small the temperature. Below
    # the smallest normal number, of which a device may make 0, no two logits are as near as that.
    temperature = max(sampling.temperature, torch.finfo(logits_V.dtype).tiny)
    scaled = (logits_V - logits_V.max()) / temperature
    ordered, index = scaled.softmax(dim=-1).sort(descending=True)
    # A token stays if those before it do not yet hold top_p; the likeliest always does.
    before = ordered.cumsum(dim=-1) - ordered
    kept = ordered.where((before < sampling.top_p), torch.zeros_like(ordered))
    return int(index[torch.multinomial(kept, 1, generator=generator)])
