"""Chat templates in Go's words. What Go makes of them: tests/parity/test_ollama.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.tokenizer.go_template import begins_with_bos, go_template
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from tests.support.tokenizer_files import byte_tokenizer, smollm2, write_sentencepiece

CHATML = """\
{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system
{{ .Content }}<|im_end|>
{{ else if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ .Content }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
"""
SMOLLM2 = """\
{{ if not .System }}<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
{{ end }}"""
LLAMA2 = """\
{{ if not .System }}[INST] {{ end }}{{ $first := true }}{{ range .Messages }}\
{{ if eq .Role "system" }}[INST] <<SYS>>
{{ .Content }}
<</SYS>>

{{ else if eq .Role "user" }}{{ if $first }}{{ $first = false }}{{ else }}<s>[INST] {{ end }}\
{{ .Content }} [/INST]{{ else if eq .Role "assistant" }} {{ .Content }} </s>{{ end }}{{ end }}"""
SHOUTS = """\
{% for m in messages %}{{ m.role }}: {{ m.content | upper }}
{% endfor %}"""
DATED = """\
{% for m in messages %}{{ m.role }}: {{ m.content }} ({{ strftime_now('%d') }})
{% endfor %}"""
TAKES_THOUGHTS_OUT = """\
{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}
{% endfor %}"""
COUNTS = """\
{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}
{% endfor %}"""
NO_SYSTEM = """\
{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}
{% endfor %}"""
BROKEN = "{% for %}"


def test_each_is_written_as_a_reader_of_the_modelfile_meets_it(tmp_path: Path) -> None:
    """The BOS that a tokenizer puts before texts is left to it."""
    of_bytes = byte_tokenizer(tmp_path)
    chatml = load_template("chatml", of_bytes).jinja(of_bytes)
    assert chatml.startswith("{{- '' if bos_token") and go_template(chatml, of_bytes) == CHATML
    own = go_template(smollm2().chat_templates["default"], smollm2())
    assert own == SMOLLM2 + CHATML
    pieces = load_tokenizer(write_sentencepiece(tmp_path / "pieces" / "tokenizer.model", 512))
    assert go_template(load_template("llama2", pieces).jinja(pieces), pieces) == LLAMA2


def test_braces_of_the_template_s_own_are_no_action(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ '{{' ~ m.role ~ '}}' ~ m.content }}{% endfor %}"
    found = go_template(source, byte_tokenizer(tmp_path))
    assert found is not None and '{{ "{{" }}user}}{{ .Content }}' in found


@pytest.mark.parametrize("source", [SHOUTS, DATED, TAKES_THOUGHTS_OUT, COUNTS, NO_SYSTEM, BROKEN])
def test_what_go_has_no_words_for_is_not_guessed(source: str, tmp_path: Path) -> None:
    assert go_template(source, byte_tokenizer(tmp_path)) is None


def test_whether_bos_is_written(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    for name in ("alpaca", "chatml", "llama2"):
        assert begins_with_bos(load_template(name, tokenizer).jinja(tokenizer), tokenizer)
    assert not begins_with_bos(COUNTS, tokenizer)
