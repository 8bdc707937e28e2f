"""What a model has no room for, held against the data and prompts it is given: positions past those
it was made for, and tokens for which its embedding has no row; and the degrees of parallelism that
its sizes do not suit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llama.data.flat import Examples
from llama.data.source import Source
from llama.errors import UserError, raise_if
from llama.model.config import ModelConfig
from llama.notes import note
from llama.settings.degrees import Degrees
from llama.tokenizer.base import Tokenizer

FOREIGN = 0.1
"""Of a tokenizer's ids, without control tokens: where more have no row, the tokenizer is another
model's. A few are what users add: a padding token, or one for a format of their own."""


def check_tokenizer(path: Path, tokenizer: Tokenizer, config: ModelConfig, model: str) -> None:
    """Refuse a tokenizer that is another model's by its size. A few tokens without a row are
    refused where they are used, by `check_examples` and `check_prompts`."""
    size, rows = tokenizer.vocab_size, config.vocab_size
    control = sum(id_ >= rows for id_ in tokenizer.special_tokens.values())
    if size - rows - control > FOREIGN * size:
        raise UserError(
            f"{path}: the tokenizer gives ids up to {size - 1} and the model {model} embeds "
            f"{rows}: it belongs to another model"
        )


def check_examples(
    source: Source, examples: Examples, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    """Refuse examples of `source` that use a token without a row. Those longer than the model's
    positions are counted in one line; refused where its rotation is not known there."""
    problems = []
    for id_, at in sorted(examples.using(config.vocab_size).items()):
        problems.append(f"{source.name}: {source.numbers(at)}: {_no_row(tokenizer, id_, config)}")
    lengths = examples.lengths
    long = examples.rows[lengths > config.max_seq_len]
    if len(long):
        verb = "is" if len(long) == 1 else "are"
        past = (
            f"{source.name}: {len(long):,} of {len(examples):,} examples "
            f"({source.numbers(long.tolist())}) {verb} longer than the model's "
            f"{config.max_seq_len} positions (max_position_embeddings), the longest has "
            f"{lengths.max():,} tokens"
        )
        problems += _past(past, f"--seq_len {config.max_seq_len} stays within", config)
    raise_if(problems)


def check_prompts(
    prompts: Mapping[str, Sequence[int]],
    max_new_tokens: int,
    config: ModelConfig,
    tokenizer: Tokenizer,
) -> None:
    """The same of prompts, by what each is called in a line, and of the answers that may follow
    them. Of those that go past the positions the longest is told, and how many others do."""
    problems = [
        f"{name}: {_no_row(tokenizer, id_, config)}"
        for name, prompt in prompts.items()
        for id_ in sorted(set(prompt))
        if id_ >= config.vocab_size
    ]
    room = config.max_seq_len - max_new_tokens
    long = {name: len(prompt) for name, prompt in prompts.items() if len(prompt) > room}
    if long:
        name, longest = max(long.items(), key=lambda item: item[1])
        others = f", as do {len(long) - 1:,} other prompts" if len(long) > 1 else ""
        past = (
            f"{name}: the prompt's {longest:,} tokens and {max_new_tokens:,} new ones go past the "
            f"model's {config.max_seq_len} positions (max_position_embeddings){others}"
        )
        left = config.max_seq_len - longest
        advice = f"--max_new_tokens {left} stays within" if left > 0 else "shorten the prompt"
        problems += _past(past, advice, config)
    raise_if(problems)


def room_for_answer(prompt: Sequence[int], config: ModelConfig, tokenizer: Tokenizer) -> int:
    """Positions that the model has left behind `prompt`, below 0 where it goes past them. Raises
    UserError where the model has no row for one of its tokens."""
    lacking = sorted({id_ for id_ in prompt if id_ >= config.vocab_size})
    raise_if([f"the conversation {_no_row(tokenizer, id_, config)}" for id_ in lacking])
    return config.max_seq_len - len(prompt)


def can_answer(prompt: Sequence[int], max_new_tokens: int, config: ModelConfig) -> bool:
    """Whether the model can compute an answer to `prompt` at all."""
    ends = config.ends_at_max_seq_len and len(prompt) + max_new_tokens > config.max_seq_len
    return max(prompt) < config.vocab_size and not ends


def degree_problems(degree: int, config: ModelConfig) -> list[str]:
    """Sizes of the model that the tensor-parallel degree does not suit."""
    problems = []
    sizes = {
        "query heads": config.n_heads,
        "kv heads": config.n_kv_heads,
        "feed-forward width": config.ffn_dim,
    }
    bad = {what: size for what, size in sizes.items() if size % degree}
    if bad:
        dividing = [
            d for d in range(1, config.n_kv_heads + 1) if not any(s % d for s in sizes.values())
        ]
        found = ", ".join(f"{what} {size}" for what, size in bad.items())
        problems.append(
            f"--tensor_parallel {degree} does not divide the model's {found}: "
            f"{', '.join(map(str, dividing))} would"
        )
    return problems


def degrees_problems(options: Degrees, config: ModelConfig) -> list[str]:
    """The same of both degrees: the ranks that share tokens attend to whole heads each."""
    shards, ranks = options.tensor_parallel, options.sequence_parallel
    problems = degree_problems(shards, config)
    heads, kv_heads = config.n_heads // shards, config.n_kv_heads // shards
    if problems or _trades(ranks, heads, kv_heads):
        return problems
    fitting = [count for count in range(1, heads + 1) if _trades(count, heads, kv_heads)]
    each = " on each of its shards" if shards > 1 else ""
    return [
        f"--sequence_parallel {ranks}: each of its ranks attends to whole heads, and the model has "
        f"{heads} query heads and {kv_heads} kv heads{each}: {', '.join(map(str, fitting))} would "
        "do"
    ]


def _trades(ranks: int, heads: int, kv_heads: int) -> bool:
    """Whether so many ranks can share the heads, a kv head going to several of them."""
    return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def check_length(seq_len: int, config: ModelConfig) -> None:
    """The same of rows that are all `seq_len` tokens long."""
    if seq_len > config.max_seq_len:
        past = (
            f"--seq_len: {seq_len} is past the model's {config.max_seq_len} positions "
            "(max_position_embeddings)"
        )
        raise_if(_past(past, f"--seq_len {config.max_seq_len} stays within", config))


def _past(past: str, advice: str, config: ModelConfig) -> list[str]:
    """A problem where positions past the model's cannot be computed, else a note."""
    if config.ends_at_max_seq_len:
        return [f"{past}, beyond which rope_type 'dynamic' is not supported: {advice}"]
    note(f"{past}, and it has not learnt what lies beyond: {advice}")
    return []


def _no_row(tokenizer: Tokenizer, id_: int, config: ModelConfig) -> str:
    return (
        f"uses the token {_text(tokenizer, id_)} of id {id_}, and the model's embedding has "
        f"{config.vocab_size} rows: take it out of the text and the template, or use a model that "
        "was resized for it"
    )


def _text(tokenizer: Tokenizer, id_: int) -> str:
    control = {other: text for text, other in tokenizer.special_tokens.items()}
    return repr(control.get(id_) or tokenizer.decode([id_]))
