"""Conversations with tools, calls and what tools answered, from every form of tokenizer: ids are
those of transformers' `apply_chat_template`. 0 differences are wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama.data.rows import Row, read_rows
from llama.tokenizer.base import IGNORE, Message
from llama.tokenizer.chat import ChatTemplate
from llama.tokenizer.load import load_tokenizer
from tests.parity.test_templates_against_transformers import Tally, Theirs, has_control_tokens
from tests.support.tokenizer_folders import folders

HERMES = (
    "{%- if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}"
    "{{ messages[0].content ~ '\n\n' }}{% endif %}# Tools\n{% for tool in tools %}"
    "{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% elif messages[0].role == 'system' %}"
    "<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{%- for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% elif m.role == 'assistant' %}"
    "<|im_start|>assistant\n{{ m.content or '' }}{% for call in m.tool_calls or [] %}"
    "{% if call.function %}{% set call = call.function %}{% endif %}\n(call)\n"
    '{"name": "{{ call.name }}", "arguments": '
    "{% if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}"
    "{% endif %}}\n(/call){% endfor %}<|im_end|>\n{% elif m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}\n"
    "(response)\n{{ m.content }}\n(/response)"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen 2.5: several calls in a turn, answers of tools gathered in one."""
PARAMETERS = (
    "{{ bos_token }}{% if tools is not none %}{{ tools | tojson(indent=4) }}\n\n{% endif %}"
    "{% for m in messages %}{% if m.tool_calls is defined %}[assistant]\n"
    "{% for call in m.tool_calls %}{{ call.function.name }}("
    "{% for name, value in call.function.arguments.items() %}{{ name }}={{ value | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}){% endfor %}{{ eos_token }}"
    "{% elif m.role == 'tool' %}[tool {{ m.name }} {{ m.tool_call_id }}] {{ m.content | trim }}\n"
    "{% else %}[{{ m.role }}]\n{{ m.content }}{{ eos_token if m.role == 'assistant' else '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
"""As Llama 3.2's calls in Python's syntax: names, values and ids are written apart."""
TEMPLATES = {"hermes": HERMES, "parameters": PARAMETERS}


def call(name: str, arguments: Any, id_: str = "c1") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": id_, "type": "function", "function": function}


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "required": sorted(parameters)}
    function = {"name": name, "description": f"Does “{name}” <b>now</b>.", "parameters": schema}
    return {"type": "function", "function": function}


USER: Message = {"role": "user", "content": "What is the weather in Zürich and in 東京?"}
ANSWER: Message = {"role": "assistant", "content": "Cold: 3 °C."}
WEATHER = call("weather", {"city": 'Zürich "Nord"', "days": [1, 2], "where": {"lat": 47.4}})
TIME = call("time", {"zone": "Asia/東京", "exact": True, "none": None}, "c2")
TOOLS = [
    tool("weather", city={"type": "string"}, days={"type": "array", "items": {"type": "number"}}),
    tool("time", zone={"type": "string", "enum": ["Asia/東京", "<utc>"]}),
]
RESULT: Message = {
    "role": "tool", "name": "weather", "tool_call_id": "c1", "content": '{"t": 3, "u": "°C"}\n',
}  # fmt: skip
CASES: dict[str, list[Message]] = {
    "tools that nobody calls": [USER, ANSWER],
    "a call": [USER, {"role": "assistant", "content": "", "tool_calls": [WEATHER]}, RESULT, ANSWER],
    "two calls in a turn": [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [WEATHER, TIME]},
        RESULT,
        {"role": "tool", "name": "time", "tool_call_id": "c2", "content": "  12:00  "},
        ANSWER,
    ],
    "a call after an answer": [
        USER,
        ANSWER,
        {"role": "user", "content": "And the time?"},
        {"role": "assistant", "content": "", "tool_calls": [TIME]},
    ],
    "no arguments": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call("time", {})]},
        {"role": "tool", "name": "time", "tool_call_id": "c1", "content": "[1, 2]"},
        ANSWER,
    ],
}


def test_every_form_of_tokenizer(tmp_path: Path) -> None:
    tally = Tally()
    for name, write in folders().items():
        folder = write(tmp_path / name)
        theirs, ours = Theirs(folder), load_tokenizer(folder)
        for template_name, source in TEMPLATES.items():
            if not has_control_tokens(source, ours):
                continue
            template = ChatTemplate(template_name, source)
            for case, messages in CASES.items():
                for tools in (TOOLS, None):
                    what = f"{name}, {template_name}, {case}, {'with' if tools else 'no'} tools"
                    tally.compare(
                        what,
                        template.render(messages, ours, tools)[0],
                        theirs.chat(messages, source, prompt=False, tools=tools),
                        theirs.cut(messages, source, tools),
                    )
                    tally.compare(
                        f"{what}, prompt",
                        template.prompt(messages[:-1], ours, tools),
                        theirs.chat(messages[:-1], source, prompt=True, tools=tools),
                    )
    print(f"{tally.combinations:,} combinations, {len(tally.differences)} differences")
    assert not tally.differences, "\n".join(tally.differences[:5])
    assert tally.combinations > 500
    assert tally.cut < tally.combinations / 20


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("case", CASES)
def test_of_a_row_as_a_file_has_it(tmp_path: Path, case: str, template: str) -> None:
    """From the file to the ids, calls and tools as objects and as JSON text."""
    folder = folders()["bytes, digits"](tmp_path / "tokenizer")
    theirs, ours = Theirs(folder), load_tokenizer(folder)
    source = TEMPLATES[template]
    expected = theirs.chat(CASES[case], source, prompt=False, tools=TOOLS)
    cut = theirs.cut(CASES[case], source, TOOLS)
    for row in rows(tmp_path, CASES[case]):
        ids, labels = ChatTemplate(template, source).render(row.messages, ours, row.tools)
        assert ids in (expected, cut)
        assert any(label != IGNORE for label in labels)


def rows(folder: Path, messages: list[Message]) -> list[Row]:
    texts = [
        {**m, "tool_calls": json.dumps(m["tool_calls"])} if "tool_calls" in m else m
        for m in messages
    ]
    records = [
        {"messages": messages, "tools": TOOLS},
        {"messages": texts, "tools": json.dumps(TOOLS)},
    ]
    (folder / "rows.json").write_text(json.dumps(records))
    return read_rows([folder / "rows.json"]).rows
