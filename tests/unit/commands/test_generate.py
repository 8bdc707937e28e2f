"""Where prompts come from, and in which order and form answers go out."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama.adapters.attach import adapters
from llama.assembly.model import load_adapter, ready_model
from llama.commands import generate as command
from llama.commands.generate import generate
from llama.commands.prompts import read_prompts
from llama.errors import UserError
from llama.model.decoding import Sampling, decode, decode_without_cache
from llama.settings import GenerateOptions
from llama.weights.open_model import open_model
from tests.bad_inputs.setting import write_adapter
from tests.support.tiny_runs import read_lines, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Puts bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    return put


def texts(**options: Any) -> list[str]:
    return [prompt.text for prompt in read_prompts(GenerateOptions(**options))]


def test_prompts_come_in_the_order_in_which_they_are_given(
    given: Callable[[bytes], None], tmp_path: Path
) -> None:
    given(b"eine\nzwei\r\n")
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffdrei  \r\n\n  \nvïer\ndrei  ".encode())
    found = texts(prompt=["null", "-", "null"], prompt_file=file)
    assert found == ["null", "eine\nzwei", "null", "drei  ", "vïer", "drei  "]


def test_a_file_of_objects_is_told_by_its_first_line(
    given: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a\nb", "id": 1}, {"prompt": "", "id": 2, "tag": "x"}]
    given("\n".join(map(json.dumps, rows)).encode())
    assert texts(prompt_file=Path("-")) == ["a\nb", ""]
    assert capsys.readouterr().err.splitlines() == [
        "standard input: the field 'id' of 2 rows is not read",
        "standard input: the field 'tag' of 1 rows is not read",
    ]
    given(b'{braces} are no JSON\n{"prompt": 1}\n')
    assert texts(prompt_file=Path("-")) == ["{braces} are no JSON", '{"prompt": 1}']


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_objects_is_read_as_training_data_is(
    indent: int | None, given: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    given(json.dumps([{"prompt": "a\nb", "id": 1}, {"prompt": "c"}], indent=indent).encode())
    assert texts(prompt_file=Path("-")) == ["a\nb", "c"]
    assert "the field 'id' of 1 rows is not read" in capsys.readouterr().err


GIVE = "; give JSONL with a prompt in each object, or plain text"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a",}\n{"prompt": "b"}', "line 1: looks like JSON and is none (#)" + GIVE),
        ('{"prompt": "a"\n{"prompt": "b"}', "line 1: looks like JSON and is none (#)" + GIVE),
        ("{'prompt': 'a'}", "line 1: looks like JSON and is none (#)" + GIVE),
        ('\n[\n{"prompt": "a"},\n{"prompt" 1}]', "line 4: looks like JSON and is none (#)" + GIVE),
        ('{\n "prompt": "a"\n}\n', "line 1: begins one JSON object over several lines" + GIVE),
        ('{\n "prompt" "a"\n}\n', "line 2: looks like JSON and is none (#)" + GIVE),
        ("[" * 100_000, "line 1: looks like JSON and is none (nested too deeply)" + GIVE),
        ('["a"]\n["b"]', "line 2: looks like JSON and is none (#)" + GIVE),
        ('["a", {"prompt": 1}]', "row 1: expected a JSON object with `prompt`, found 'a'"),
        ("[]", "holds no prompts; give a text with one prompt a line, or JSONL with a prompt in "
         "each object"),
        ('"a"\n"b"', "line 1: is a text of JSON, in quotes" + GIVE),
        ('{"prompt": "a"}\n{"prompt": "a\\ud83d b"}', "line 2: `prompt` holds half of a surrogate "
         "pair, which is no character"),
        ('[{"prompt": "a\\u0000"}]', "row 1: `prompt` holds a NUL character"),
        ('{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}', "line 2: names the field "
         "'prompt' twice; keep one"),
    ],
)  # fmt: skip
def test_what_looks_like_json_is_no_plain_text(
    content: str, said: str, given: Callable[[bytes], None]
) -> None:
    given(content.encode())
    with pytest.raises(UserError) as caught:
        texts(prompt_file=Path("-"))
    line = caught.value.problems[0]
    why = re.sub(r"is none \((?!nested).*\);", "is none (#);", line)
    assert why == f"standard input: {said}"


@pytest.mark.parametrize(
    "text",
    [
        *("[INST] a [/INST]", "{a} or b?", '"To be" is whose?', "42", "[sic]", '"a"\nb', "(a)"),
        *("[ ] buy milk", "{{ name }} is who?", "[[Paris]] is where?", "{} in Go means?"),
        *("['a', 'b'].join is what?", '["a"] what is it', '"To be or not to be"'),
    ],
)
def test_what_only_begins_like_it_is(text: str, given: Callable[[bytes], None]) -> None:
    given(text.encode())
    assert texts(prompt_file=Path("-")) == text.split("\n")


def test_many_problems_of_a_file_are_counted(given: Callable[[bytes], None]) -> None:
    given(b'{"prompt": "a"}\n' + b"{}\n" * 30)
    with pytest.raises(UserError) as caught:
        texts(prompt_file=Path("-"))
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "standard input: and 10 more like these"


def answered(model: str, **options: Any) -> None:
    tiny = {"model": model, "template": "chatml", "precision": "float32", "max_new_tokens": 6}
    assert generate(GenerateOptions(**tiny | options)) == 0


PROMPTS = ["one", "a second prompt", "3", "the fourth"]


def test_each_way_out_gives_the_same_answers(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Together as text, JSON and JSONL; one after another as they are written; and alone."""

    def shown(**options: Any) -> str:
        answered(model, **options)
        return capsys.readouterr().out

    document = json.loads(shown(prompt=PROMPTS, json=True, batch=3))
    rows = document["answers"]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["row"] for row in rows] == [1, 2, 3, 4]
    assert document["tokens"] == sum(row["tokens"] for row in rows)
    shown(prompt=PROMPTS, batch=2, output=tmp_path / "out.jsonl")
    assert read_lines(tmp_path / "out.jsonl") == rows
    answers = [row["text"] for row in rows]
    pairs = list(zip(PROMPTS, answers, strict=True))
    assert shown(prompt=PROMPTS) == "".join(f"> {p}\n{a}\n\n" for p, a in pairs)
    assert shown(prompt=PROMPTS, stream=True) == "".join(f"> {p}\n{a}\n" for p, a in pairs)
    for prompt, answer in pairs:
        assert shown(prompt=[prompt]) == f"{answer}\n"
        alone = json.loads(shown(prompt=[prompt], json=True))
        assert alone["text"] == answer and alone["finish_reason"] == "length"


def test_the_system_turn_is_read(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    answered(model, prompt=["one"])
    plain = capsys.readouterr().out
    answered(model, prompt=["one"], system="Be brief.")
    assert capsys.readouterr().out != plain


def test_what_is_done_is_kept_when_it_is_stopped(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the third and the first are done: the third does not wait for the second."""

    def interrupted(*args: Any, **options: Any) -> Any:
        done = {text.index: text for text in together(*args, **options)}
        yield done[2]
        yield done[0]
        raise KeyboardInterrupt

    together = command.decode_together
    monkeypatch.setattr(command, "decode_together", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answered(model, prompt=PROMPTS, output=tmp_path / "out.jsonl")
    assert [row["row"] for row in read_lines(tmp_path / "out.jsonl")] == [1, 3]


def test_an_adapter_changes_what_is_written_with_and_without_the_cache(
    model: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "adapter")
    ours = ready_model(open_model(model), None, "float32")
    prompt = [5, 17, 3]
    plain = list(decode(ours, prompt, 12, frozenset(), Sampling()))
    load_adapter(ours, tmp_path / "adapter")
    assert list(adapters(ours))
    adapted = list(decode(ours, prompt, 12, frozenset(), Sampling()))
    assert adapted == decode_without_cache(ours, prompt, 12) != plain
