"""Data made into examples in parts and processes, and kept: the same as all at once, whatever
happens to the cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import get_ident
from typing import Any

import pytest

from llama.data.examples import build_examples
from llama.data.packing import digest_of
from llama.data.prepare import Prepared, Reading, prepare
from llama.data.rows import read_rows
from llama.data.store import cache, entry, making, pool, tokenised
from llama.data.types import Example
from llama.errors import TrainingError, UserError
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.templates import load_template
from tests.support.large_rows import rows, write
from tests.support.tokenizer_files import byte_tokenizer

SEQ_LEN = 600


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return byte_tokenizer(tmp_path)


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small parts, two processes, and the cache for files of any size."""
    monkeypatch.setattr(tokenised, "SMALL", 0)
    monkeypatch.setattr(making, "PART_ROWS", 7)
    monkeypatch.setattr(tokenised, "cpus", lambda alone: 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def prepared(path: Path, tokenizer: Tokenizer, *more: Path, **how: Any) -> Prepared:
    template = load_template("chatml", tokenizer)
    return prepare([path, *more], template, tokenizer, Reading(SEQ_LEN, **how))


def file_of(tmp_path: Path, count: int = 60, name: str = "rows.jsonl") -> Path:
    write(tmp_path / name, count)
    return tmp_path / name


def all_at_once(path: Path, tokenizer: Tokenizer, *more: Path) -> list[Example]:
    """By the plain way."""
    template = load_template("chatml", tokenizer)
    found = read_rows([path, *more]).rows
    return build_examples(found, template, tokenizer, SEQ_LEN, "drop").examples


def entries(folder: Path) -> list[Path]:
    return [index.parent for index in folder.glob(f"*/{entry.INDEX}")]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_as_all_at_once(
    processes: int, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenised, "cpus", lambda alone: processes)
    files = file_of(tmp_path), file_of(tmp_path, 33, "more.json")
    made = prepared(files[0], tokenizer, files[1])
    expected = all_at_once(files[0], tokenizer, files[1])
    assert list(made.examples) == expected
    assert made.packed.digest == digest_of(list(made.packed))
    monkeypatch.setattr(tokenised, "SMALL", 1 << 40)
    small = prepared(files[0], tokenizer, files[1])
    assert small.report == made.report and small.packed.digest == made.packed.digest
    numbers = [61, 3, 93, 60]
    assert made.rows_numbered(numbers) == [
        row for n in numbers for row in read_rows(files).rows if row.number == n
    ]


def test_columns_that_only_later_parts_have(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Each process sees some of the rows, and whether a column is there is asked of all."""
    path = file_of(tmp_path)
    lines = path.read_text().splitlines()
    late = json.loads(lines[-1])
    late["answer"] = late.pop("output")
    path.write_text("\n".join([*lines[:-1], json.dumps(late)]))
    columns = (("output", "answer"),)
    made = prepared(path, tokenizer, columns=columns)
    template = load_template("chatml", tokenizer)
    rows = read_rows([path], columns).rows
    assert list(made.examples) == (
        build_examples(rows, template, tokenizer, SEQ_LEN, "drop").examples
    )
    assert made.rows_numbered([rows[-1].number]) == rows[-1:]
    with pytest.raises(UserError, match="--columns output=anser: no row has 'anser'") as caught:
        prepared(path, tokenizer, columns=(("output", "anser"),))
    assert "did you mean answer" in caught.value.problems[0]


def test_a_second_start_makes_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path)
    first = prepared(path, tokenizer)
    moved = path.rename(tmp_path / "moved")
    monkeypatch.setattr(tokenised, "make_in", None)
    again = prepared(moved, tokenizer)
    assert again.report.text() == first.report.text() and list(again.packed) == list(first.packed)
    assert again.report.source.files == (moved,)


def test_what_changes_the_tokens_changes_the_key(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = file_of(tmp_path)
    folder = tmp_path / "xdg" / "llama-lora" / "data"
    template = load_template("chatml", tokenizer)
    other = byte_tokenizer(tmp_path / "other", bos_token=None)
    made = []
    for args in (
        (template, tokenizer, Reading(SEQ_LEN)),
        (template, tokenizer, Reading(SEQ_LEN + 1)),
        (template, tokenizer, Reading(SEQ_LEN, overlong="cut")),
        (template, tokenizer, Reading(SEQ_LEN, columns=(("output", "input"),))),
        (load_template("alpaca", tokenizer), tokenizer, Reading(SEQ_LEN)),
        (template, other, Reading(SEQ_LEN)),
        (template, tokenizer, Reading(SEQ_LEN, pack=False)),
    ):
        prepare([path], *args)
        made.append(len(entries(folder)))
    assert made == [2, 4, 6, 8, 10, 12, 13]  # examples and packing; packing alone
    path.write_bytes(path.read_bytes() + b"\n" + json.dumps(next(rows(1, seed=5))).encode())
    prepare([path], template, tokenizer, Reading(SEQ_LEN))
    assert len(entries(folder)) == 15


def test_a_template_that_writes_the_date_writes_that_of_the_run(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    (tmp_path / "dated.jinja").write_text(source)
    template = load_template(str(tmp_path / "dated.jinja"), tokenizer)
    path = file_of(tmp_path)
    digests = []
    for epoch in ("0", "0", str(366 * 86400)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        digests.append(prepare([path], template, tokenizer, Reading(SEQ_LEN)).packed.digest)
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    digests.append(prepare([path], template, tokenizer, Reading(SEQ_LEN)).packed.digest)
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize("name", ["tokens.bin", "index.json", "lengths.bin", "places.bin"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_entry_is_made_again_with_one_note(
    name: str, harm: str, tokenizer: Tokenizer, tmp_path: Path, capsys: Any
) -> None:
    path = file_of(tmp_path)
    first = prepared(path, tokenizer)
    (place,) = (
        folder / name
        for folder in entries(tmp_path / "xdg" / "llama-lora" / "data")
        if (folder / "tokens.bin").exists()
    )
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 4
    place.unlink()
    if harm != "remove":
        place.write_bytes(content if harm == "flip" else content[:-3])
    again = prepared(path, tokenizer)
    assert again.packed.digest == digest_of(list(again.packed)) == first.packed.digest
    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged" in line and "made again" in line
    prepared(path, tokenizer)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [1, 2, 9])
def test_a_disk_that_fills_up(
    number: int, tokenizer: Tokenizer, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first part, in the midst of the examples and at the packing: the run goes on, and
    says so."""
    monkeypatch.setattr(tokenised, "cpus", lambda alone: 1)
    add, left = cache.Sink.add, [number]

    def full(sink: cache.Sink, arrays: Any) -> None:
        if sink._folder is not None:
            left[0] -= 1
            if left[0] <= 0:
                raise entry.NotKeptError("No space left on device")
        add(sink, arrays)

    path = file_of(tmp_path)
    expected = all_at_once(path, tokenizer)
    monkeypatch.setattr(cache.Sink, "add", full)
    assert list(prepared(path, tokenizer).examples) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written (No space left on device)" in line
    assert not list((tmp_path / "xdg" / "llama-lora" / "data").glob(".making-*"))


def test_a_cache_that_cannot_be(tokenizer: Tokenizer, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    path = file_of(tmp_path)
    made = prepared(path, tokenizer, cache=tmp_path / "file" / "cache")
    assert list(made.examples) == all_at_once(path, tokenizer)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--data_cache: ")


def started(path: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    """A process that prepares `path`, with the tokenizer that is in `folder` already: several that
    each wrote it would read one another's unfinished file."""
    tokenizer = str(folder / "tokenizer.json")
    command = [sys.executable, "-m", "tests.unit.data.preparing", str(path), tokenizer, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = file_of(tmp_path, 400)
    folder = tmp_path / "xdg" / "llama-lora" / "data"
    with started(path, tmp_path, "stand still") as process:
        assert process.stdout is not None and process.stdout.readline() == "making\n"
        assert list(folder.glob(".making-*/tokens.bin"))
        process.send_signal(signal.SIGKILL)
    assert not entries(folder)
    made = prepared(path, tokenizer)
    assert list(made.examples) == all_at_once(path, tokenizer)
    for left in folder.glob(".making-*"):
        os.utime(left, (0, 0))
    prepared(path, tokenizer, pack=False)
    assert not list(folder.glob(".making-*"))


def test_several_at_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = file_of(tmp_path, 200)
    several = [started(path, tmp_path) for _ in range(3)]
    said = {process.communicate()[0].strip() for process in several}
    assert [process.returncode for process in several] == [0, 0, 0]
    assert said == {prepared(path, tokenizer).packed.digest}
    assert len(entries(tmp_path / "xdg" / "llama-lora" / "data")) == 2


def test_those_that_wait_are_told_what_another_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them reads the rows again; who comes later does, and who asks by another name."""
    here: SimpleQueue[int] = SimpleQueue()
    mark = cache._mark

    def marked(file: Path) -> tuple[int, int] | None:
        seen = mark(file)
        here.put(get_ident())  # After the look: from here on a refusal is news to this thread.
        return seen

    monkeypatch.setattr(cache, "_mark", marked)
    filled = []

    def fill(sink: entry.Sink, alone: bool) -> dict[str, Any]:
        filled.append(alone)
        come: set[int] = set()
        while len(filled) == 1 and len(come) < 3:  # Each looks more than once.
            come.add(here.get(timeout=60))
        raise UserError(["rows.json: row 1: bad", "rows.json: row 2: bad"])

    def ask(name: str) -> list[str]:
        with pytest.raises(UserError) as caught:
            cache.cached(tmp_path, "key", {"a": "<i8"}, fill, asked=name)
        return caught.value.problems

    with ThreadPoolExecutor(3) as threads:
        told = list(threads.map(ask, ["rows.json"] * 3))
    assert told == [["rows.json: row 1: bad", "rows.json: row 2: bad"]] * 3
    assert filled == [True]
    ask("rows.json")
    ask("other.json")
    assert filled == [True] * 3
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(cache._MAKING)]


def test_the_least_used_goes_first_and_what_is_mapped_stays(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "xdg" / "llama-lora" / "data"
    held = prepared(file_of(tmp_path, 50, "a.jsonl"), tokenizer)
    mapped = set(entries(folder))
    gone = prepared(file_of(tmp_path, 51, "b.jsonl"), tokenizer)
    loose = set(entries(folder)) - mapped
    del gone
    monkeypatch.setattr(cache, "LIMIT", 0)
    newest = prepared(file_of(tmp_path, 52, "c.jsonl"), tokenizer)
    left = set(entries(folder))
    assert mapped <= left and not loose & left
    assert list(held.examples) and list(newest.examples)


@pytest.mark.parametrize("bad", [0, 30, 59])
def test_problems_are_told_as_by_the_plain_way(
    bad: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    records: list[Any] = list(rows(60))
    for at in range(bad, 60, 3):
        records[at] = [{"output": 1}, "text", {"text": "x"}, {"prompt": "a"}][at % 4]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(records))
    with pytest.raises(UserError) as plain:
        read_rows([path])
    with pytest.raises(UserError) as caught:
        prepared(path, tokenizer)
    assert caught.value.problems == plain.value.problems


def test_what_the_template_cannot_express_is_told_as_before(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    turned = [{"messages": [answer, question]} if i % 4 == 1 else {"messages": [question, answer]}
              for i in range(200)]  # fmt: skip
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(turned))
    with pytest.raises(UserError) as caught:
        prepare([path], load_template("alpaca", tokenizer), tokenizer, Reading(SEQ_LEN))
    (line,) = caught.value.problems
    assert "rows 2, 6, 10, 14, 18 and more: alpaca: turn 1 is assistant" in line
    path.write_text(json.dumps([*turned, {"messages": 3}]))
    with pytest.raises(UserError, match="row 201: field 'messages' is a number"):
        prepare([path], load_template("alpaca", tokenizer), tokenizer, Reading(SEQ_LEN))


@pytest.mark.parametrize("ended_before", [True, False])
def test_a_process_that_is_killed_ends_the_run(
    ended_before: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = file_of(tmp_path)
    job = making.Making(load_template("chatml", tokenizer), tokenizer, SEQ_LEN, "drop")
    worker = pool._Worker(job)
    (part, *_) = making.parts([path], [])
    assert worker.make(part).tally.rows == 7
    worker._process.kill()
    if ended_before:  # what is sent then cannot be, and stays in the pipe's buffer
        worker._process.wait()
    with pytest.raises(TrainingError, match="ended by signal 9"):
        worker.make(part)
    worker.end()


def test_cpus_are_shared_by_the_ranks_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda of: set(range(12)), raising=False)
    monkeypatch.setattr(pool, "cgroup_cpus", lambda: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert pool.cpus(alone=False) == 3 and pool.cpus(alone=True) == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "40")
    assert pool.cpus(alone=False) == 1
    monkeypatch.setattr(pool, "cgroup_cpus", lambda: 5.5)
    assert pool.cpus(alone=True) == 6
    monkeypatch.setattr(pool, "cgroup_cpus", lambda: 0.25)
    assert pool.cpus(alone=True) == 1


def test_no_more_processes_than_parts(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenised, "cpus", lambda alone: 9)
    started: list[Any] = []

    class Counted(pool._Worker):
        def __init__(self, job: making.Making) -> None:
            started.append(job)
            super().__init__(job)

    monkeypatch.setattr(pool, "_Worker", Counted)
    path = file_of(tmp_path, 14)
    assert list(prepared(path, tokenizer).examples) == all_at_once(path, tokenizer)
    assert 1 <= len(started) <= 2
