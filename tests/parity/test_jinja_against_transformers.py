"""The environment that templates run in writes what transformers' own writes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from jinja2.filters import FILTERS
from transformers.utils.chat_template_utils import _compile_jinja_template

from llama.errors import UserError
from llama.tokenizer.jinja_sandbox import LEFT_OUT, compile_template

VARIABLES: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": " Be kind.\n"},
        {"role": "user", "content": "<b> caf\u00e9 & 'co'"},
        {"role": "assistant", "content": "yes", "tool_calls": [{"b": 1, "a": [None, True, 2.5]}]},
    ],
    "bos_token": "<s>",
    "add_generation_prompt": True,
}
WRITTEN = [
    "{{ messages[2].tool_calls | tojson }}",
    "{{ messages | tojson(indent=4) }}",
    "{{ messages | tojson(indent='\t', sort_keys=true) }}",
    "{{ messages | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "{{ messages[1].content | tojson }} {{ messages[1].content }} {{ messages[1].content | e }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}"
    "{% if m.role == 'user' %}{% break %}{% endif %}{% endfor %}",
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n  {{ m.role }}\n    {% endif %}\n"
    "{% endfor %}\n\n  {# a comment #}\nend\n",
    "{%- for m in messages -%}  {{- m.content -}}  {%- endfor -%}",
    "{% set x = 1 %}{% generation %}\n{% set x = 2 %}{{ x }}{% endgeneration %}\n{{ x }}",
    "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}"
    "{% endfor %}",
    "{% macro f(a, b='c') %}[{{ a }}{{ b }}{{ caller() if caller else '' }}]{% endmacro %}"
    "{{ f(1) }}{% call f(2, b=3) %}inner{% endcall %}",
    "{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ ns.found }}{{ dict(a=1, b=2) }}{{ dict.fromkeys('ab', 0) }}",
    "{% set x %}a {{ bos_token }}{% endset %}{{ x | length }}{{ x }}"
    "{% filter upper %}b{% endfilter %}",
    "{{ tools is none }}{{ documents is none }}{{ date_string is defined }}{{ nothing }}",
    "{{ tools is defined }}{{ strftime_now is defined }}{{ raise_exception is defined }}",
    "{{ 'a,b'.split(',')[-1] }}{{ 'ab'[::-1] }}{{ ' x '.strip() }}{{ 'x'.startswith('x') }}",
    "{{ messages | map(attribute='role') | join(', ') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages | groupby('role') | list | length }}{{ [3, 1, 2] | sort | last }}",
    "{{ '%s-%03d' % ('a', 7) }}{{ '{:>5}'.format('b') }}{{ 'a' ~ 1 ~ none }}{{ 7 // 2 }}",
    "{{ [1, 2, 3] | sum }}{{ [1, 2, 3] | batch(2, 0) | list }}{{ 'ab' | center(6) }}|",
    "{{ [1, 2, 3] | slice(2) | list }}{{ 'a b' | wordcount }}{{ 'a b c' | wordwrap(3) }}",
    "{{ '%s!' | format('a') }}{{ '<p>a</p>' | striptags }}{{ 'a b' | urlencode }}",
    "{{ 1234567 | filesizeformat }}{{ {'a': 1} | xmlattr }}{{ {'b': 1, 'a': 2} | dictsort }}",
    "{{ 'a' | attr('upper') is callable }}{{ [1, 1] | unique | list }}{{ 'ab' | first }}",
    "{{ messages | pprint }}{{ 'see http://a.b' | urlize }}{{ '<' | forceescape }}",
    "{{ 'a\nb' | indent(2, first=true) }}{{ 'abcdefgh' | truncate(5, true, '') }}",
    "{{ range(3) | list }}{{ cycler('a', 'b').next() }}{{ joiner(',')() }}",
]


@pytest.mark.parametrize("source", WRITTEN)
def test_it_writes_the_same(source: str) -> None:
    theirs = _compile_jinja_template(source).render(
        **{"tools": None, "documents": None}, **VARIABLES
    )
    assert compile_template(source, "it")(VARIABLES) == theirs
    assert theirs.strip()


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no such turn') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ ''.__class__ .__mro__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ 1 / 0 }}",
        "{{ nothing.attribute }}",
        "{% for %}",
        "{% generation %}",
        "{% break %}",
        "{% include 'x' %}",
    ],
)
def test_both_refuse(source: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - theirs are of many kinds
        _compile_jinja_template(source).render(**VARIABLES)
    with pytest.raises(UserError):
        compile_template(source, "it")(VARIABLES)


def test_every_filter_is_there_but_chance() -> None:
    for name in FILTERS:
        source = f"{{{{ messages is defined or (1 | {name}) }}}}"
        if name in LEFT_OUT:
            with pytest.raises(UserError, match="No filter named 'random'"):
                compile_template(source, "it")
        else:
            assert compile_template(source, "it")(VARIABLES) == "True"


def test_the_date_is_today_s_or_the_one_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    source = "{{ strftime_now('%d %b %Y') }}"
    before = datetime.now().strftime("%d %b %Y")
    written = compile_template(source, "it")(VARIABLES)
    assert written in (before, datetime.now().strftime("%d %b %Y"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1721952000")
    assert compile_template(source, "it")(VARIABLES) == "26 Jul 2024"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UserError, match="the template fails"):
        compile_template(source, "it")(VARIABLES)
