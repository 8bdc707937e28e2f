"""The tokenizer beside the model, or given with --tokenizer, and its templates."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.bad_inputs.setting import Case, Setting
from tests.support.tokenizer_files import byte_description, write_ranks, write_tokenizer_json

FILE, CONFIG = "model/tokenizer.json", "model/tokenizer_config.json"


def content(data: bytes | str) -> Callable[[Setting], None]:
    data = data.encode() if isinstance(data, str) else data
    return lambda setting: setting.path(FILE).write_bytes(data) and None


def template(source: str) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        setting.path("chat.jinja").write_text(source)
        setting.options["template"] = "chat.jinja"

    return spoil


def description(change: Callable[[dict[str, Any]], object]) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        document = byte_description()
        change(document)
        write_tokenizer_json(setting.path("model"), document)

    return spoil


def truncated(setting: Setting) -> None:
    data = setting.path(FILE).read_bytes()
    setting.path(FILE).write_bytes(data[: len(data) // 2])


def absent(setting: Setting) -> None:
    setting.path(FILE).unlink()


def fifo(setting: Setting) -> None:
    setting.path(FILE).unlink()
    os.mkfifo(setting.path(FILE))


def larger(document: dict[str, Any]) -> None:
    vocabulary = document["model"]["vocab"]
    vocabulary |= {f"token {i}": len(vocabulary) + i for i in range(40)}


def without_row(document: dict[str, Any]) -> None:
    """`add ` is a token of its own, for which the embedding has no row."""
    vocabulary = document["model"]["vocab"]
    vocabulary |= {f"token {i}": len(vocabulary) + i for i in range(3)}
    flags = {"special": False, "single_word": False, "lstrip": False, "rstrip": False}
    token = {"id": 264, "content": "add ", "normalized": False}
    document["added_tokens"].append({**flags, **token})


def of_the_same_size(setting: Setting) -> None:
    document = byte_description()
    vocabulary = document["model"]["vocab"]
    letters = [token for token in vocabulary if len(token) == 1]
    ids = [vocabulary[token] for token in letters]
    vocabulary |= dict(zip(letters, reversed(ids), strict=True))
    write_tokenizer_json(setting.path("other"), document)
    setting.options["tokenizer"] = "other/tokenizer.json"


def of_llama3(setting: Setting) -> None:
    write_ranks(setting.path("tokenizer.model"), count=300)
    setting.options["tokenizer"] = "tokenizer.model"


def no_end(setting: Setting) -> None:
    setting.path(CONFIG).unlink()
    setting.path("model/generation_config.json").unlink()


def inside_gguf(setting: Setting) -> None:
    setting.options |= {"model": "model.gguf"}


CASES = [
    Case("none beside the model", absent, ("no tokenizer was found beside it",)),
    Case("a file that is not there", lambda s: s.options.update(tokenizer="tok"), ("tok does",)),
    Case("a FIFO", fifo, ("model/tokenizer.json: is not a regular file",)),
    Case("an empty file", content(""), ("model/tokenizer.json: is empty",)),
    Case("half a file", truncated, ("model/tokenizer.json: is not valid JSON",)),
    Case("no tokenizer", content("\x00\x01 not a tokenizer"), ("is not a tokenizer, or is",)),
    Case("other JSON", content('{"version": "1.0"}'), ("is JSON but no tokenizer",)),
    Case("a model of no known kind", content('{"model": {"type": "X"}}'), ("not a usable",)),
    Case("a tokenizer larger than the embedding", description(larger), ("another model",)),
    Case("a token that the embedding has no row for", description(without_row), ("'add '",)),
    Case("another model's of the same size", of_the_same_size, ("stand for other text",)),
    Case(
        "no end-of-sequence token",
        no_end,
        ("nothing names its end-of-sequence token",),
    ),
    Case(
        "an end-of-sequence token of another model",
        lambda setting: setting.edit_json(CONFIG, eos_token="<|eot_id|>"),
        ("its EOS token '<|eot_id|>' is not in the vocabulary",),
    ),
    Case(
        "a beginning-of-sequence token of another model",
        lambda setting: setting.edit_json(CONFIG, bos_token="<bos>"),
        ("its BOS token '<bos>' is not in the vocabulary",),
    ),
    Case(
        "settings that are no JSON",
        lambda setting: setting.path(CONFIG).write_text("{"),
        ("model/tokenizer_config.json: is not valid JSON",),
    ),
    Case("a ranks file that is not Llama 3's", of_llama3, ("holds 300 tiktoken ranks",)),
    Case("GGUF without a known tokenizer", inside_gguf, ("holds a tokenizer of kind None",)),
    Case(
        "a template that needs other tokens",
        lambda setting: setting.options.update(template="llama3"),
        ("template llama3: the tokenizer has no token <|start_header_id|>",),
    ),
    Case("a template that is no Jinja", template("{% for %}"), ("is not a valid Jinja template",)),
    Case(
        "a template that reaches for Python",
        template("{{ messages.__class__.__mro__[1].__subclasses__() }}"),
        ("rows 1, 2, 3, 4, 5 and more: chat.jinja: the template fails",),
    ),
    Case(
        "a template without an end",
        template("{% for i in range(9999) %}" * 2 + "xxxx" + "{% endfor %}" * 2),
        ("the template's output has no end",),
    ),
    Case(
        "a template that changes what is said",
        template("{% for m in messages %}{{ m.content | upper }}{% endfor %}"),
        ("the template changes what a message says",),
    ),
    Case(
        "a template that writes BOS twice",
        template(
            "{{ bos_token }}{{ bos_token }}"
            "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
        ),
        ("11 examples begin with BOS twice",),
    ),
]
