"""What Ollama makes a model of a GGUF file by.

Instructions: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx; how they are read:
parser/parser.go there. A quoted text ends with a quote at the end of a line and has no escapes;
what Go does not call printable is dropped from it without a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NAME = "Modelfile"
_CUT_SHORT = re.compile(r'"""[ \t]*\n')


def modelfile(weights: str, template: str | None, stops: Sequence[str]) -> str:
    """Of the GGUF file `weights` beside it, with a template in Go's words, if there is one, and the
    texts at which an answer ends."""
    lines = [f"FROM ./{weights}"]
    if template is not None and is_sayable(template):
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stops if is_sayable(text)]
    return "".join(f"{line}\n" for line in lines)


def is_sayable(text: str) -> bool:
    """Whether a Modelfile can hold `text`."""
    printable = text.translate({ord("\n"): None, ord("\t"): None}).isprintable()
    return printable and _CUT_SHORT.search(text) is None


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
