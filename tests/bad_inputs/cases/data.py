"""Training and held-out rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from tests.bad_inputs.setting import Case, Setting


def content(data: bytes | str) -> Callable[[Setting], None]:
    data = data.encode() if isinstance(data, str) else data
    return lambda setting: setting.path("rows.json").write_bytes(data) and None


def rows(*records: Any) -> Callable[[Setting], None]:
    return content(json.dumps(records))


def quoted_csv(setting: Setting) -> None:
    setting.path("rows.csv").write_text('text\na\n"b"c\n')
    setting.options["data"] = "rows.csv"


def named(path: str) -> Callable[[Setting], None]:
    return lambda setting: setting.options.update(data=path)


def a_text(setting: Setting) -> None:
    setting.path("rows.json").write_text("# Notes\n\nThese are\nno rows.\n")


def third_line_cut(setting: Setting) -> None:
    records = json.loads(setting.path("rows.json").read_text())
    lines = [json.dumps(record) for record in records[:2]] + ['{"prompt": "a", "comple']
    setting.path("rows.json").write_text("\n".join(lines))


def fifo(setting: Setting) -> None:
    os.mkfifo(setting.path("pipe"))
    setting.options["data"] = "pipe"


def parquet_cut(setting: Setting) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["a"], "completion": ["b"]})
    pyarrow.parquet.write_table(table, setting.path("rows.json"))
    data = setting.path("rows.json").read_bytes()
    setting.path("rows.json").write_bytes(data[:-20])


def folder(*names: str) -> Callable[[Setting], None]:
    def make(setting: Setting) -> None:
        setting.path("set").mkdir()
        for name in names:
            (setting.path("set") / name).write_text(json.dumps([PAIR]))
        setting.options["data"] = "set"

    return make


def given_twice(setting: Setting) -> None:
    setting.more += ["--data", "./rows.json"]


def both_files(setting: Setting) -> None:
    setting.edit_rows((1, {"prompt": "a"}))
    setting.path("held_out.json").write_text("[]")
    setting.options["eval_data"] = "held_out.json"


def option(**options: str) -> Callable[[Setting], None]:
    return lambda setting: setting.options.update(options)


def all_cut(setting: Setting) -> None:
    all_longer(setting)
    setting.options["overlong"] = "cut"


def all_longer(setting: Setting) -> None:
    setting.options["seq_len"] = "8"


PAIR = {"prompt": "a", "completion": "b"}
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CASES = [
    Case("a file that is not there", named("row.json"), ("did you mean rows.json?",)),
    Case("a model's folder", named("model"), ("--data: model: holds a model (config.json)",)),
    Case(
        "a shard missing",
        folder("train-00000-of-00002.json"),
        ("set: these of its shards are missing: train-00001-of-00002.json",),
    ),
    Case("two splits", folder("train.json", "test.json"), ("set: holds several splits (test, tr",)),
    Case("a folder without data", folder("notes.txt"), ("set: holds no data file among its 1",)),
    Case("one file twice", given_twice, ("--data: rows.json is given twice",)),
    Case("a FIFO", fifo, ("--data: pipe is not a regular file",)),
    Case("an empty file", content(""), ("rows.json: is empty",)),
    Case("an empty list", content("[]"), ("holds no rows",)),
    Case("no data but a text", a_text, ("rows.json: no line of it is JSON (line 1: ",)),
    Case("a line cut short", third_line_cut, ("rows.json: line 3: malformed JSON",)),
    Case("a list cut short", content('[{"prompt": "a"'), ("rows.json: is not valid JSON",)),
    Case("one object over several lines", content('{"a": [\n1]}'), ("one JSON object",)),
    Case("CSV of other columns", content("a,b\n1,2\n"), ("row 1: has none of the known",)),
    Case("CSV with a quote too many", quoted_csv, ("rows.csv: line 3: ",)),
    Case(
        "a field twice",
        content('{"text": "a", "text": "b"}\n'),
        ("line 1: names the field 'text' twice",),
    ),
    Case("a Parquet file cut short", parquet_cut, ("is not a readable Parquet file",)),
    Case("bad UTF-8", content(b'{"text": "a"}\n{"text": "\xff"}\n'), ("line 2: is not UTF-8",)),
    Case("a NUL", content('{"text": "a"}\n{"text": "\0"}\n'), ("line 2: holds a NUL character",)),
    Case("half a surrogate pair", content('[{"text": "\\ud800"}]'), ("half of a surrogate",)),
    Case("a field missing", lambda s: s.edit_rows((3, {"prompt": "a"})), ("row 3: field",)),
    Case("a field that is null", rows({**PAIR, "prompt": None}), ("field 'prompt' is missing",)),
    Case(
        "a field of the wrong kind",
        lambda s: s.edit_rows((2, {"prompt": "a", "completion": 3})),
        ("row 2: field 'completion' is a number, not a string",),
    ),
    Case("a row that is no object", lambda s: s.edit_rows((7, "a")), ("row 7: is a string",)),
    Case("fields of no known form", rows({"question": "a", "solution": "b"}), ("known fields",)),
    Case(
        "a column to rename that no row has",
        lambda s: s.options.update(columns="prompt=question"),
        ("rows.json: --columns prompt=question: no row has 'question' (they have prompt, comp",),
    ),
    Case(
        "columns that name nothing",
        lambda s: s.options.update(columns="prompt"),
        ("--columns: expected NEW=OLD, as output=answer, found 'prompt'",),
    ),
    Case(
        "a column renamed twice",
        lambda s: s.options.update(columns="prompt=a,prompt=b"),
        ("--columns: prompt is given twice; keep one",),
    ),
    Case("template-free segments", rows({"segments": []}), ("row 1: is text in segments",)),
    Case(
        "a call that is no JSON",
        rows(
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "function_call", "value": "f()"},
                ]
            }
        ),
        ("turn 2, field 'value' is not a call",),
    ),
    Case("a gzip file", content(b"\x1f\x8b\x08" + bytes(9)), ("is gzip-compressed: unpack it",)),
    Case("UTF-16", content('[{"text": "a"}]'.encode("utf-16")), ("is UTF-16 text, not UTF-8",)),
    Case("lines of lists", content('["a"]\n["b"]\n'), ("line 1: is a list, not an object",)),
    Case("a CSV row with a value too many", content("text,id\na,b,c\n"), ("row 1: has 3 values",)),
    Case(
        "preference pairs",
        rows({"prompt": "a", "chosen": "a", "rejected": "b"}),
        ("row 1: is a preference pair",),
    ),
    Case("judged answers", rows({**PAIR, "label": True}), ("row 1: is a judged answer (KTO",)),
    Case("tokens in place of text", rows({"input_ids": [1]}), ("row 1: holds tokens (input_ids)",)),
    Case("images", rows({**PAIR, "images": ["a.png"]}), ("row 1: holds images, sound or film",)),
    Case("two forms in one file", rows(PAIR, {"text": "a"}), ("row 2: is text, but",)),
    Case("an unknown role", rows({"messages": [{**USER, "role": "gpt"}, ANSWER]}), ("'gpt'",)),
    Case("a chat without an answer", rows({"messages": [USER]}), ("no assistant turn",)),
    Case(
        "a turn without content",
        rows({"messages": [{"role": "user"}, ANSWER]}),
        ("turn 1, field 'content' is missing",),
    ),
    Case(
        "a part that is no text",
        rows({"messages": [{**USER, "content": [{"type": "image_url"}]}, ANSWER]}),
        ("turn 1, field 'content', part 1 is of type 'image_url'",),
    ),
    Case(
        "a weight of a half",
        rows({"messages": [USER, {**ANSWER, "weight": 0.5}]}),
        ("turn 2, field 'weight' is 0.5; known are 0 and 1",),
    ),
    Case(
        "another switch of a turn",
        rows({"messages": [USER, {**ANSWER, "loss": False}]}),
        ("turn 2 has `loss`, which is not read",),
    ),
    Case(
        "calls that the template does not write",
        rows({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f"}}]}]}),
        ("rows.json: row 1: chatml: turn 2 has tool_calls, which the template does not write",),
    ),
    Case(
        "a history that is no list of pairs",
        rows({"instruction": "a", "output": "b", "history": ["a"]}),
        ("field 'history', pair 1 is a string, not [question, answer]",),
    ),
    Case(
        "every row longer than `--seq_len`",
        all_longer,
        ("rows.json: 11 of its 11 rows are longer than --seq_len 8",),
    ),
    Case(
        "prompts as long as `--seq_len`",
        all_cut,
        ("rows.json: none of its 11 rows has a token to learn",),
    ),
    Case(
        "a long conversation to be split",
        option(seq_len="8", overlong="split"),
        ("longer than --seq_len 8, and --overlong split is for plain texts alone",),
    ),
    Case("a weight of nothing", named("rows.json:0"), ("above 0 and at most 1,000",)),
    Case(
        "a weight of held-out rows",
        option(eval_data="rows.json:2"),
        ("--eval_data: rows.json:2: a weight has no effect here",),
    ),
    Case("an empty share held out", option(eval_split="0"), ("expected a share above 0",)),
    Case(
        "rows held out twice",
        option(eval_split="0.1", eval_data="rows.json"),
        ("--eval_split: --eval_data says what is held out",),
    ),
    Case("all rows held out", option(eval_split="11"), ("leave none to train on",)),
    Case("both data files wrong", both_files, ("rows.json: row 1", "held_out.json: holds no")),
    Case("nested 100,000 deep", content("[" * 100_000), ("rows.json: is nested too deeply",)),
    Case("a line nested 100,000 deep", content('{"a":' * 100_000), ("line 1: is nested too",)),
    Case(
        "thirty bad rows",
        rows(*[{"prompt": "a"}] * 30),
        (*(f"row {number}: " for number in range(1, 21)), "and 10 more problems like these"),
    ),
    Case("rows to evaluate on", rows({"a": 1}), ("row 1: has none of the known",), "evaluate"),
    Case("rows to look at", rows({"a": 1}), ("row 1: has none of the known",), "data"),
    Case(
        "a row to look at that is not there",
        lambda s: s.options.update(rows="12"),
        ("--rows: rows.json has no row 12; it has 11, numbered from 1 to 11",),
        "data",
    ),
    Case(
        "a seed below 0 of rows to hold out",
        lambda s: s.options.update(eval_split="0.1", seed="-1"),
        ("--seed: ",),
        "data",
    ),
    Case(
        "rows to look at that are no numbers",
        lambda s: s.options.update(rows="1-3"),
        ("--rows: expected numbers of rows from 1 on, as 3,17, found '1-3'",),
        "data",
    ),
]
