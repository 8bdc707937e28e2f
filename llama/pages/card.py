"""A model card, as the Hugging Face hub has it: YAML between two lines of dashes, then Markdown.

It is drawn from what `training.json` says, so that it can be drawn again once more is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from llama.files.json_text import json_text
from llama.pages.sample import Sample

_LONGEST = 1200
"""Characters of a sample that are shown."""


def card(document: Mapping[str, Any], samples: Sequence[Sample] = ()) -> str:
    """The card of what a run gave; `document` is its `training.json`."""
    is_adapter = document["method"] != "full"
    parts = [
        _front(document, is_adapter),
        _title(document, is_adapter),
        "## Use\n",
        _use_adapter(document) if is_adapter else _use_model(document),
        "## Data\n",
        _table(("data", "rows", "examples", "tokens", "learnt", "SHA-256"), _data(document)),
        *_losses(document),
        "## Settings\n",
        _table(("setting", "value"), _settings(document)),
    ]
    if samples:
        parts += ["## Answers before and after\n", *map(_sample, samples)]
    return "\n".join(parts)


def _front(document: Mapping[str, Any], is_adapter: bool) -> str:
    """What the hub reads. It takes names of its own alone: a folder's name is left out."""
    base, sets = document["base"]["hub"], [name for of in document["data"] for name in of["hub"]]
    front = {
        **({"base_model": base} if base else {}),
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", document["method"], "llama-lora"],
        **({"datasets": list(dict.fromkeys(sets))} if sets else {}),
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n"


def _title(document: Mapping[str, Any], is_adapter: bool) -> str:
    base, hub = document["base"]["name"], document["base"]["hub"]
    copy = f", a quantised copy of `{hub}`" if hub not in (None, base) else ""
    what = "LoRA adapter of" if is_adapter else "Fine-tuning of"
    steps, of = document["step"], document["settings"]
    step = "none: made of others" if steps is None else f"{steps:,} of {of['steps']:,}"
    rows = [
        ("base model", f"`{base}`{copy}"),
        ("hash of its weights (sampled)", f"`{document['base']['sampled_sha256']}`"),
        ("hash of its tokenizer", f"`{document['tokenizer']['sha256']}`"),
        ("chat template", f"{document['template']['name']}"),
        ("step", step),
    ]
    return f"# {what} {base.rstrip('/').rpartition('/')[2]}\n\n{_table(('', ''), rows)}"


def _use_adapter(document: Mapping[str, Any]) -> str:
    base = document["base"]["hub"] or document["base"]["name"]
    peft = (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({base!r})\n"
        "model = PeftModel.from_pretrained(base, FOLDER)"
    )
    return (
        "FOLDER is the folder of this card. With llama-lora, the program that made it, which takes "
        "base and template from it:\n\n"
        f"{_fenced('llama-lora generate --adapter FOLDER --prompt TEXT', 'bash')}\n"
        f"With PEFT; prompts are to be laid out by `chat_template.jinja`:\n\n"
        f"{_fenced(peft, 'python')}"
    )


def _use_model(document: Mapping[str, Any]) -> str:
    template = document["template"]["name"]
    return (
        "FOLDER is the folder of this card; it is in Hugging Face's layout. Prompts are to be laid "
        f"out as in training: {template}.\n\n"
        f"{_fenced('llama-lora generate --model FOLDER --prompt TEXT', 'bash')}"
    )


def _data(document: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for of in document["data"]:
        names = ", ".join(f"`{name}`" for name in of["names"])
        more = f" and {of['more_names']} more" if of["more_names"] else ""
        counts = (f"{of[key]:,}" for key in ("rows", "examples", "tokens", "supervised_tokens"))
        held_out = " (held out)" if of["option"] == "eval_data" else ""
        yield (f"{names}{more}{held_out}", *counts, f"`{of['sha256'][:12]}`")


def _losses(document: Mapping[str, Any]) -> list[str]:
    """Nothing where none is known, as of an adapter that was combined of others."""
    losses = document["losses"]
    rows = [
        ("held out, before training", losses["eval_loss_before"]),
        ("held out, at this step", losses["eval_loss"]),
        *((f"training, epoch {n}", loss) for n, loss in enumerate(losses["epoch_losses"])),
    ]
    known = [(name, f"{loss:.4f}") for name, loss in rows if loss is not None]
    return ["## Losses\n", _table(("mean over learnt tokens", "loss"), known)] if known else []


def _settings(document: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in (document["settings"] | document["versions"]).items():
        yield f"`{name}`", value if isinstance(value, str) else json_text(value)


def _sample(sample: Sample) -> str:
    shown = [
        f"{title}:\n\n{_fenced(_cut(text), 'text')}"
        for title, text in (("Before", sample.before), ("After", sample.after))
    ]
    return f"### Prompt\n\n{_fenced(_cut(sample.prompt), 'text')}\n" + "\n".join(shown)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} [...]"


def _fenced(text: str, language: str) -> str:
    """A block of code, its fence longer than any in `text`."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
