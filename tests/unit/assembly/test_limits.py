"""What goes past a model's positions or its embedding is refused or counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama.assembly.limits import (
    can_answer,
    check_examples,
    check_length,
    check_prompts,
    check_tokenizer,
    degrees_problems,
)
from llama.data.flat import Examples, flat_of, flatten
from llama.data.source import Source
from llama.data.types import Example
from llama.errors import UserError
from llama.model.scaling import DynamicScaling
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from tests.support.model_files import TINY
from tests.support.tokenizer_files import byte_description, byte_tokenizer, write_tokenizer_json

ROWS = Path("rows.jsonl")
SOURCE = Source((ROWS,))
SHORT = replace(TINY, vocab_size=264, max_seq_len=16)
DYNAMIC = replace(SHORT, rope_scaling=DynamicScaling(4.0))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return byte_tokenizer(tmp_path)


def example(length: int, row: int, id_: int = 5) -> Example:
    return Example([id_] * length, [id_] * length, row)


def of(*examples: Example) -> Examples:
    largest = max(max(example.input_ids) for example in examples)
    return Examples(flat_of(flatten(examples), largest))


def test_what_fits_is_not_spoken_of(tokenizer: Tokenizer, capsys: Any) -> None:
    for config in (SHORT, DYNAMIC):
        check_tokenizer(ROWS, tokenizer, config, "model")
        check_examples(SOURCE, of(example(16, 1), example(3, 2, id_=263)), config, tokenizer)
        check_prompts({"--prompt": [263] * 6}, 10, config, tokenizer)
        check_length(16, config)
    assert capsys.readouterr().err == ""


def test_positions_past_the_model_s_are_counted(tokenizer: Tokenizer, capsys: Any) -> None:
    rows = of(example(16, 1), example(40, 2), example(17, 3))
    check_examples(SOURCE, rows, SHORT, tokenizer)
    check_prompts({"--prompt": [5] * 6}, 11, SHORT, tokenizer)
    check_prompts({"--prompt": [5] * 20}, 11, SHORT, tokenizer)
    check_length(17, SHORT)
    data, prompt, long_prompt, length = capsys.readouterr().err.splitlines()
    assert data.startswith("rows.jsonl: 2 of 3 examples (rows 2, 3) are longer than the model's 16")
    assert "the longest has 40" in data and "--seq_len 16 stays within" in data
    assert "6 tokens and 11 new ones go past the model's 16 positions" in prompt
    assert prompt.endswith("--max_new_tokens 10 stays within")
    assert long_prompt.endswith("shorten the prompt")
    assert length.startswith("--seq_len: 17 is past the model's 16 positions")


def test_a_rotation_that_changes_with_the_length_ends_there(tokenizer: Tokenizer) -> None:
    for check in (
        lambda: check_examples(SOURCE, of(example(17, 3)), DYNAMIC, tokenizer),
        lambda: check_prompts({"--prompt": [5] * 6}, 11, DYNAMIC, tokenizer),
        lambda: check_length(17, DYNAMIC),
    ):
        with pytest.raises(UserError, match=r"16 positions.* rope_type 'dynamic' is not supported"):
            check()
    assert can_answer([5] * 6, 11, SHORT) and can_answer([5] * 6, 10, DYNAMIC)
    assert not can_answer([5] * 6, 11, DYNAMIC)


def test_a_token_without_a_row_is_refused_where_it_is_used(tmp_path: Path) -> None:
    description = byte_description()
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for id_, text in ((261, "[PAD]"), (262, "<extra>")):
        token = {"id": id_, "content": text, "special": id_ == 261}
        description["added_tokens"].append({**base, **token})
    tokenizer = _tokenizer(tmp_path / "added", description)
    config = replace(SHORT, vocab_size=261)
    check_tokenizer(Path("t"), tokenizer, config, "model")
    check_examples(SOURCE, of(example(4, 1)), config, tokenizer)
    with pytest.raises(UserError) as caught:
        check_examples(SOURCE, of(example(4, 2, 261), example(4, 7, 262)), config, tokenizer)
    first, second = caught.value.problems
    assert first.startswith("rows.jsonl: row 2: uses the token '[PAD]' of id 261")
    assert second.startswith("rows.jsonl: row 7: uses the token '<extra>' of id 262")
    with pytest.raises(UserError, match=r"--prompt: uses the token '\[PAD\]'"):
        check_prompts({"--prompt": [1, 261]}, 1, config, tokenizer)
    assert not can_answer([1, 261], 1, config) and can_answer([1, 260], 1, config)


def _tokenizer(folder: Path, description: dict[str, Any]) -> Tokenizer:
    return load_tokenizer(write_tokenizer_json(folder, description))


def test_a_tokenizer_far_larger_is_another_model_s(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="it belongs to another model"):
        check_tokenizer(ROWS, tokenizer, replace(SHORT, vocab_size=200), "model")


@pytest.mark.parametrize(
    ("shards", "ranks", "fits"),
    [(1, 8, True), (1, 3, False), (2, 4, True), (2, 8, False), (4, 2, True), (8, 1, False)],
)
def test_ranks_that_share_tokens_have_whole_heads(shards: int, ranks: int, fits: bool) -> None:
    """TINY has 8 query heads and 4 kv heads; a kv head may go to several ranks."""
    degrees = SimpleNamespace(tensor_parallel=shards, sequence_parallel=ranks)
    problems = degrees_problems(degrees, TINY)
    assert len(problems) == (not fits)
    if problems and shards < 8:
        (line,) = problems
        assert line.startswith(f"--sequence_parallel {ranks}: each of its ranks attends to whole")
        assert line.endswith(
            f"{', '.join(str(2**n) for n in range(4) if 2**n * shards <= 8)} would do"
        )
