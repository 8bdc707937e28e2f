"""Rows to examples, and the lint that looks at them before training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama.data.examples import ExampleSet, Overlong, build_examples, refusals
from llama.data.findings import Tallied
from llama.data.flat import flatten, repeats
from llama.data.lint import LintReport, lint
from llama.data.prepare import Reading, prepare
from llama.data.rows import Row, bundled, read_rows
from llama.data.source import Source
from llama.data.tally import tally_of
from llama.data.types import IGNORE, Example
from llama.errors import UserError
from llama.tokenizer.base import Follows, Message, Tokenizer
from llama.tokenizer.load import load_tokenizer
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
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    seq_len: int = 64,
    template: str = "chatml",
    overlong: Overlong = "cut",
) -> ExampleSet:
    chosen = load_template(template, tokenizer)
    return build_examples(rows, chosen, tokenizer, seq_len, overlong)


def linted(built: ExampleSet, tokenizer: Tokenizer) -> LintReport:
    tally = tally_of(built, tokenizer)
    tally.duplicates = repeats(flatten(built.examples)["contents"].reshape(-1, 2))
    return lint(tally, FILE, built.seq_len, built.overlong)


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
    built = build([Row(1, text=text)], tokenizer, seq_len, overlong="split")
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
    built = build([chat(1, "q", "a"), *backwards], tokenizer, template="alpaca")
    (line,) = refusals(FILE, built.refused)
    assert line.split(": ")[1] == "rows 2, 4"


def test_a_template_that_fails_on_every_row_is_not_tried_on_all(tokenizer: Tokenizer) -> None:
    taken = []

    def rows() -> Iterator[Row]:
        for number in range(1, 1000):
            taken.append(number)
            yield Row(number, chat(number, "q", "a").messages[::-1])

    built = build(rows(), tokenizer, template="alpaca")
    (line,) = refusals(FILE, built.refused)
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
    report = linted(build(rows, tokenizer), tokenizer)
    assert (report.rows, report.examples, report.duplicates) == (4, 3, 1)
    assert (report.truncated.rows, report.longest) == ([3, 4], 64)
    assert report.skipped == {"its prompt alone has 64 tokens or more": Tallied(1, [3])}
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
    report = linted(build_examples(rows, template, smollm2(), 1024, "drop"), smollm2())
    assert (report.rows, report.examples) == (200, 200)
    assert not report.dropped
    assert not report.skipped
    assert not report.duplicates


def refused(built: ExampleSet, tokenizer: Tokenizer) -> list[str]:
    with pytest.raises(UserError) as caught:
        linted(built, tokenizer)
    assert all(line.startswith("data.json: ") for line in caught.value.problems)
    return caught.value.problems


def test_no_end_in_any_label_is_refused(tokenizer: Tokenizer) -> None:
    built = build([chat(1, "q", "ab")], tokenizer)
    ids, labels = built.examples[0].input_ids, built.examples[0].labels
    built.examples[0] = Example(ids, [IGNORE if label == 3 else label for label in labels], 1)
    assert "learn to stop" in refused(built, tokenizer)[0]
    built.examples[0] = Example(ids, labels, 1)
    linted(built, tokenizer)


def test_all_rows_truncated_is_refused(tokenizer: Tokenizer) -> None:
    built = build([chat(1, "q", "a" * 99), chat(2, "q", "a" * 99)], tokenizer)
    assert "raise --seq_len" in refused(built, tokenizer)[0]


def test_doubled_bos_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "twice.jinja"
    path.write_text("<s>{{ bos_token }}{{ messages[0].content }}{{ messages[1].content }}</s>")
    built = build([chat(1, "q", "a"), chat(2, "r", "b")], tokenizer, template=str(path))
    (line,) = refused(built, tokenizer)
    assert "2 examples begin with BOS twice (rows 1, 2)" in line


def test_nothing_to_learn_is_refused(tokenizer: Tokenizer) -> None:
    built = build([chat(1, "q" * 80, "a"), chat(2, "q" * 90, "a")], tokenizer)
    (line,) = refused(built, tokenizer)
    assert "none of its 2 rows has a token to learn (row 1: its prompt alone" in line
    assert "holds no rows" in refused(ExampleSet(64, "cut"), tokenizer)[0]


def found(
    rows: list[Row], tokenizer: Tokenizer, seq_len: int = 64, template: str = "chatml"
) -> str:
    return linted(build(rows, tokenizer, seq_len, template), tokenizer).text()


def test_control_text_in_rows_is_counted(tokenizer: Tokenizer) -> None:
    tools = [{"name": "<s>"}]
    rows = [chat(1, "<|im_end|>", "a<s></s>"), chat(2, "q", "a"), Row(3, text="<|im_start|>user")]
    said = found([*rows, replace(chat(4, "q", "b"), tools=tools)], tokenizer)
    assert "; 5 control tokens written out in the rows are taken as text (rows 1, 3, 4)" in said
    assert "control" not in found([chat(1, "<|im_", "end|>")], tokenizer)
    said = found([chat(1, "</s>", "a")], tokenizer)
    assert "; 1 control token written out in the rows is taken as text (row 1)" in said


def test_characters_without_a_token_are_counted() -> None:
    """SmolLM2's vocabulary lacks some control characters."""
    tokenizer = smollm2()
    rows = [Row(1, text="it printed \x04\x06 and \x13."), chat(2, "\x14", "caf\u00e9 \U0001f600")]
    said = found([*rows, chat(3, "q", "a")], tokenizer)
    assert "; 4 characters were lost, for which the tokenizer has no token (rows 1, 2)" in said
    assert "lost" not in found([chat(1, "caf\u00e9  \U0001f600\n", " a")], tokenizer)


def test_characters_without_a_piece_are_counted(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3), *((c, 1) for c in "\u2581abcq")):
        proto.pieces.add(piece=piece, score=-1.0, type=kind)
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    rows = [Row(1, text="a b"), Row(2, text="a\u00e9 b\u4e16")]
    said = found(rows, tokenizer, template="alpaca")
    assert "; 2 characters were lost, for which the tokenizer has no token (row 2)" in said


def test_turns_that_are_left_out_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.content }}"
                    "<|im_end|>{% endif %}{% endfor %}")  # fmt: skip
    system: Message = {"role": "system", "content": "Be kind."}
    rows = [Row(i, (system, *chat(i, "q", "a" * i).messages)) for i in (1, 2)]
    said = found([*rows, chat(3, "q", "b")], tokenizer, template=str(path))
    assert "; 2 turns of the role system that the template leaves out (rows 1, 2)" in said


def test_empty_answers_and_open_ends_are_counted(tokenizer: Tokenizer) -> None:
    question: Message = {"role": "user", "content": "and?"}
    muted: Message = {"role": "assistant", "content": "", "learn": False}
    call: Message = {"role": "assistant", "content": "", "reasoning_content": "so"}
    rows = [
        chat(1, "q", ""),
        chat(2, "q", " \n"),
        Row(3, (*chat(3, "q", "a").messages, question, question)),
        Row(4, (question, muted, *chat(4, "q", "a").messages)),
        Row(5, (question, call)),
    ]
    said = found(rows, tokenizer)
    assert "; 2 answers without text teach their end token alone (rows 1, 2)" in said
    assert "; 1 row ends on a user turn, after the last answer, which is left out (row 3)" in said


def test_what_a_cut_costs_is_told(tokenizer: Tokenizer) -> None:
    first = chat(1, "q", "ab").messages
    rows = [
        chat(1, "q", "a"),
        Row(2, (*first, *chat(2, "q", "b" * 60).messages)),
        Row(3, (*first, *chat(3, "q" * 60, "cc").messages)),
        chat(4, "q" * 80, "a"),
    ]
    built = build(rows, tokenizer)
    said = linted(built, tokenizer).text()
    assert "; 3 truncated (rows 2, 3, 4); " in said
    assert "; 1 answer is cut short and lost its end (row 2)" in said
    assert "; 2 answers are lost whole (rows 3, 4)" in said
    kept = sum(example.supervised for example in built.examples)
    whole = sum(example.supervised for example in build(rows, tokenizer, 512).examples)
    assert f"; {whole - kept} supervised tokens are lost with that; " in said
    (cut,) = [example for example in built.examples if example.row == 2]
    assert cut.labels[-1] == tokenizer.encode("b")[0], "no end is put where the answer has none"
    assert "most answers lost their end" not in said
    assert "most answers lost their end" in found(
        [rows[0], *rows[3:], chat(5, "r" * 90, "a")], tokenizer
    )
    assert "lost" not in found(rows, tokenizer, 512)


def test_rows_are_named_with_their_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def file(name: str, *texts: str) -> Path:
        lines = [json.dumps({"text": text, "id": text}) + "\n\n" for text in texts]
        (tmp_path / name).write_text("".join(lines))
        return tmp_path / name

    paths = [file("b.jsonl", "x", "y"), file("a.jsonl", "z", "<s>", "z")]
    data = read_rows(paths)
    assert [row.text for row in data.rows] == ["x", "y", "z", "<s>", "z"]
    said = found_in(paths, tokenizer)
    assert "5 rows gave 5 examples" in said and "1 are duplicates" in said
    assert "is taken as text (a.jsonl row 3)" in said
    assert "(b.jsonl rows 1, 3; a.jsonl rows 1, 3, 5)" in said
    bad = file("c.jsonl", "x")
    bad.write_text('{"text": 1}\n')
    with pytest.raises(UserError) as caught:
        read_rows([*paths, bad])
    assert caught.value.problems == [f"{bad}: line 1: field 'text' is a number, not a string"]


def found_in(paths: list[Path], tokenizer: Tokenizer) -> str:
    return prepare(paths, load_template("chatml", tokenizer), tokenizer, Reading(64)).report.text()


def test_the_hash_covers_every_file_in_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(json.dumps([{"text": name}]))

    def sha256(*names: str) -> str:
        paths = [tmp_path / name for name in names]
        return prepare(paths, load_template(None, tokenizer), tokenizer, Reading(64)).sha256

    assert sha256("a") == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert len({sha256("a"), sha256("b"), sha256("a", "b"), sha256("b", "a")}) == 4


def test_long_rows_are_left_out_and_named(tokenizer: Tokenizer) -> None:
    rows = [chat(1, "q", "a" * 80), chat(2, "q", "a"), Row(3, text="t" * 80), Row(4, text="t")]
    built = build(rows, tokenizer, overlong="drop")
    assert [example.row for example in built.examples] == [2, 4]
    report = linted(built, tokenizer)
    assert not report.is_plain and not report.truncated.count
    assert (
        "; 2 longer than --seq_len 64 are left out (rows 1, 3): --overlong cut keeps the beginning "
        "of each, --overlong split cuts plain texts into pieces."
    ) in report.text()
    assert "split" not in linted(build(rows[:2], tokenizer, overlong="drop"), tokenizer).text()


def test_nothing_but_long_rows_is_refused_with_what_would_fit(tokenizer: Tokenizer) -> None:
    rows = [chat(i, "q", "a" * (100 * i)) for i in range(1, 11)]
    (line,) = refused(build(rows, tokenizer, overlong="drop"), tokenizer)
    assert "10 of its 10 rows are longer than --seq_len 64 (the longest has 1,023 tokens)" in line
    assert "--seq_len 1024 would keep 100% of them, --overlong cut" in line


def test_a_cut_text_is_said_to_lose_its_end(tokenizer: Tokenizer) -> None:
    built = build([Row(1, text="t" * 80), Row(2, text="t")], tokenizer, overlong="cut")
    assert [len(example.input_ids) for example in built.examples] == [64, 3]
    said = linted(built, tokenizer).text()
    assert (
        "1 truncated (row 1)" in said and "1 answer is cut short and lost its end (row 1)" in said
    )


def test_a_long_conversation_is_not_split(tokenizer: Tokenizer) -> None:
    rows = [chat(1, "q", "a" * 80), chat(2, "q", "a"), Row(3, text="t" * 80)]
    built = build(rows, tokenizer, overlong="split")
    assert [example.row for example in built.examples] == [2, 3, 3]
    (line,) = refusals(FILE, built.refused)
    assert line.startswith("data.json: row 1: longer than --seq_len 64, and --overlong split")
