"""Rows to examples, and the lint that looks at them before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from llama.data.examples import ExampleSet, build_examples
from llama.data.lint import lint
from llama.data.rows import Row, bundled, read_rows
from llama.data.source import Source
from llama.data.types import IGNORE, Example
from llama.errors import UserError
from llama.tokenizer.base import Follows, Tokenizer
from llama.tokenizer.templates import load_template
from tests.support.tokenizer_files import byte_tokenizer, smollm2

FILE = Source((Path("data.json"),))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return byte_tokenizer(tmp_path)


def chat(number: int, user: str, assistant: str) -> Row:
    turns = {"role": "user", "content": user}, {"role": "assistant", "content": assistant}
    return Row(number, turns)  # pyright: ignore[reportArgumentType]


def build(
    rows: Iterable[Row], tokenizer: Tokenizer, seq_len: int = 64, template: str = "chatml"
) -> ExampleSet:
    return build_examples(FILE, rows, load_template(template, tokenizer), tokenizer, seq_len)


def test_conversation(tokenizer: Tokenizer) -> None:
    (example,) = build([chat(5, "q", "ab")], tokenizer).examples
    assert example.row == 5
    assert [i for i in example.labels if i != IGNORE] == [*tokenizer.encode("ab"), 3]
    assert example.supervised == 3


def test_text_is_whole_and_all_supervised(tokenizer: Tokenizer) -> None:
    (example,) = build([Row(1, text="abc <s>")], tokenizer).examples
    assert example.input_ids == [0, *tokenizer.encode("abc <s>"), 1]
    assert example.labels == example.input_ids
    assert example.input_ids.count(0) == 1


@pytest.mark.parametrize("seq_len", [2, 3, 4, 5, 11, 12, 13])
def test_long_text_is_cut_and_every_token_predicted_once(
    tokenizer: Tokenizer, seq_len: int
) -> None:
    text = "abcdfgijkl"
    built = build([Row(1, text=text)], tokenizer, seq_len)
    predicted = [id_ for example in built.examples for id_ in example.labels[1:]]
    assert predicted == [*tokenizer.encode(text), tokenizer.eos_id]
    assert built.examples[0].input_ids[0] == tokenizer.bos_id
    assert all(2 <= len(example.input_ids) <= seq_len for example in built.examples)
    assert sum(example.supervised for example in built.examples) == 11


def test_text_of_no_token_is_skipped(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, bos_token=None)
    assert build([Row(1, text="a")], tokenizer).examples
    built = build([Row(1, text="")], tokenizer)
    assert not built.examples
    assert built.skipped == [(1, "its text has no token")]


def test_truncated_and_skipped_rows_are_noted(tokenizer: Tokenizer) -> None:
    rows = [chat(1, "q", "a" * 50), chat(2, "q" * 80, "a"), chat(3, "q", "a")]
    built = build(rows, tokenizer)
    assert [example.row for example in built.examples] == [1, 3]
    assert len(built.examples[0].input_ids) == 64
    assert built.truncated == [1, 2]
    assert built.skipped == [(2, "its prompt alone has 64 tokens or more")]
    assert built.rows == 3


def test_rows_that_the_template_cannot_express_are_told_together(tokenizer: Tokenizer) -> None:
    backwards = [Row(i, chat(i, "q", "a").messages[::-1]) for i in (2, 4)]
    with pytest.raises(UserError) as caught:
        build([chat(1, "q", "a"), *backwards], tokenizer, template="alpaca")
    (line,) = caught.value.problems
    assert line.split(": ")[1] == "rows 2, 4"


def test_a_template_that_fails_on_every_row_is_not_tried_on_all(tokenizer: Tokenizer) -> None:
    taken = []

    def rows() -> Iterator[Row]:
        for number in range(1, 1000):
            taken.append(number)
            yield Row(number, chat(number, "q", "a").messages[::-1])

    with pytest.raises(UserError) as caught:
        build(rows(), tokenizer, template="alpaca")
    (line,) = caught.value.problems
    assert "rows 1, 2, 3, 4, 5 and more: " in line and len(taken) < 50


def test_a_row_of_ten_megabytes_is_truncated(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And little of it is tokenised; what is kept is what the whole would give."""
    long, short = chat(1, "q", "words and " * 1_000_000), chat(2, "q", "a")
    encode, taken = tokenizer.encode, []

    def counted(text: str, follows: Follows = "nothing") -> list[int]:
        taken.append(len(text))
        return encode(text, follows)

    monkeypatch.setattr(tokenizer, "encode", counted)
    built = build([long, short], tokenizer)
    assert [len(example.input_ids) for example in built.examples] == [64, 24]
    assert built.truncated == [1]
    assert sum(taken) < 50_000
    (like,) = build([chat(1, "q", "words and " * 100)], tokenizer).examples
    assert like == built.examples[0]


def test_report(tokenizer: Tokenizer) -> None:
    rows = [chat(1, "q", "ab"), chat(2, "q", "ab"), chat(3, "q" * 80, "a"), chat(4, "q", "c" * 64)]
    report = lint(build(rows, tokenizer), tokenizer)
    assert (report.rows, report.examples, report.duplicates) == (4, 3, 1)
    assert (report.truncated, report.longest) == ((3, 4), 64)
    assert report.skipped == ((3, "its prompt alone has 64 tokens or more"),)
    prompt = len(load_template("chatml", tokenizer).prompt(rows[0].messages[:1], tokenizer))
    assert report.tokens == 2 * (prompt + 4) + 64
    assert report.supervised_tokens == 2 * 3 + 64 - prompt
    assert report.supervised_share == report.supervised_tokens / report.tokens
    text = report.text()
    assert "\n" not in text
    for said in (
        "4 rows",
        "3 examples",
        "2 truncated (rows 3, 4)",
        "1 skipped",
        "1 are duplicates",
    ):
        assert said in text


def test_bundled_data_is_clean() -> None:
    rows = read_rows([bundled("instructions_200")]).rows
    template = load_template(None, smollm2())
    report = lint(build_examples(FILE, rows, template, smollm2(), 1024), smollm2())
    assert (report.rows, report.examples) == (200, 200)
    assert not report.truncated
    assert not report.skipped
    assert not report.duplicates


def refusals(built: ExampleSet, tokenizer: Tokenizer) -> list[str]:
    with pytest.raises(UserError) as caught:
        lint(built, tokenizer)
    assert all(line.startswith("data.json: ") for line in caught.value.problems)
    return caught.value.problems


def test_no_end_in_any_label_is_refused(tokenizer: Tokenizer) -> None:
    built = build([chat(1, "q", "ab")], tokenizer)
    ids, labels = built.examples[0].input_ids, built.examples[0].labels
    built.examples[0] = Example(ids, [IGNORE if label == 3 else label for label in labels], 1)
    assert "learn to stop" in refusals(built, tokenizer)[0]
    built.examples[0] = Example(ids, labels, 1)
    lint(built, tokenizer)


def test_all_rows_truncated_is_refused(tokenizer: Tokenizer) -> None:
    built = build([chat(1, "q", "a" * 99), chat(2, "q", "a" * 99)], tokenizer)
    assert "raise --seq_len" in refusals(built, tokenizer)[0]


def test_doubled_bos_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "twice.jinja"
    path.write_text("<s>{{ bos_token }}{{ messages[0].content }}{{ messages[1].content }}</s>")
    built = build([chat(1, "q", "a"), chat(2, "r", "b")], tokenizer, template=str(path))
    (line,) = refusals(built, tokenizer)
    assert "2 examples begin with BOS twice (rows 1, 2)" in line


def test_nothing_to_learn_is_refused(tokenizer: Tokenizer) -> None:
    built = build([chat(1, "q" * 80, "a"), chat(2, "q" * 90, "a")], tokenizer)
    (line,) = refusals(built, tokenizer)
    assert "none of its 2 rows has a token to learn (row 1: its prompt alone" in line
    assert "holds no rows" in refusals(ExampleSet(FILE, 64), tokenizer)[0]
