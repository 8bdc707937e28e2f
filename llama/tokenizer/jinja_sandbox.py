"""Renders chat templates that came with a model from elsewhere: sandboxed, of bounded output."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama.errors import UserError

ALLOWANCE = 1_000_000
"""Characters that a template may add to the contents it is given."""


def compile_template(source: str, name: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from variables to text; both it and this raise UserError naming `name`.

    The environment is the one Hugging Face's templates are written for, without `strftime_now`: a
    prompt must not change with the day, so templates with a date fall back to their fixed one.
    """
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        template = environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise UserError(f"{name}: is not a valid Jinja template ({_one_line(error)})") from None

    def render(variables: Mapping[str, Any]) -> str:
        room = ALLOWANCE + 4 * sum(len(turn["content"]) for turn in variables["messages"])
        parts: list[str] = []
        try:
            for part in template.generate(variables):
                parts.append(part)
                room -= len(part)
                if room < 0:
                    raise UserError(f"{name}: the template's output has no end")
        except UserError:
            raise
        except Exception as error:  # Whatever an operation of the template raised.
            raise UserError(f"{name}: the template fails ({_one_line(error)})") from None
        return "".join(parts)

    return render


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with no operators that make much out of little."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or _size(left) * _size(right) > ALLOWANCE:
            raise jinja2.exceptions.SecurityError(f"{operator} makes too much")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks answers for Hugging Face; here it is no more
    than its body, since answers are found by position in any template."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _size(factor: Any) -> float:
    """How much a factor of `*` makes of the other: the number itself, or a sequence's length."""
    return len(factor) if hasattr(factor, "__len__") else abs(factor)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
