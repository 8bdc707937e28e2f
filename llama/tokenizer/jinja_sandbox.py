"""Renders chat templates that came with a model from elsewhere: sandboxed, of bounded output."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama.errors import UserError
from llama.tokenizer.marks import texts_of

ALLOWANCE = 1_000_000
"""Characters that a template may add to the contents it is given."""
LARGEST = 1 << 26
"""Characters of any text on the way, or elements of any list."""
FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
    *("groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map"),
    *("max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select"),
    *("selectattr", "sort", "string", "title", "trim", "truncate", "unique", "upper"),
)
"""Those of Jinja's filters that chat templates use; of the others some make much out of little."""
_WIDTH = re.compile(r"\d{6}|\*|:[^}]*\{")
"""In a format: a width of a million, or one that is given beside it."""


def compile_template(source: str, name: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from variables to text; both it and this raise UserError naming `name`.

    The environment is the one Hugging Face's templates are written for, without `strftime_now`: a
    prompt must not change with the day, so templates with a date fall back to their fixed one.
    """
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters = {name: environment.filters[name] for name in FILTERS}
    for filter_name in ("indent", "join", "replace"):
        environment.filters[filter_name] = _guarded(environment.filters[filter_name])
    environment.filters["tojson"] = _to_json
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise_exception
    try:
        template = environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise UserError(f"{name}: is not a valid Jinja template ({_one_line(error)})") from None

    def render(variables: Mapping[str, Any]) -> str:
        given = texts_of([variables["messages"], variables.get("tools")])
        room = ALLOWANCE + 4 * sum(map(len, given))
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


class _CodeGenerator(CodeGenerator):
    """Has the environment join what `~` joins."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with nothing that makes much out of little."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"+", "%", "*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        much = {
            "+": lambda: _length(left) + _length(right) > LARGEST,
            "%": lambda: isinstance(left, str) and _WIDTH.search(left) is not None,
            "*": lambda: _size(left) * _size(right) > ALLOWANCE,
            "**": lambda: True,
        }
        if much[operator]():
            raise jinja2.exceptions.SecurityError(f"{operator} makes too much")
        return super().call_binop(context, operator, left, right)

    def joined(self, parts: tuple[Any, ...]) -> str:
        texts = [str(part) for part in parts]
        if sum(map(len, texts)) > LARGEST:
            raise jinja2.exceptions.SecurityError("~ makes too much")
        return "".join(texts)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDTH.search(value.__self__):
            raise jinja2.exceptions.SecurityError("format makes too much")
        return wrapped

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            _check_made(function.__name__, (owner, *args, *kwargs.values()))
        return super().call(context, function, *args, **kwargs)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that may not make much out of its arguments."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        values = [list(v) if hasattr(v, "__next__") else v for v in args]
        _check_made(function.__name__, (*values, *kwargs.values()))
        return function(*values, **kwargs)

    return guarded


def _check_made(name: str, values: Sequence[Any]) -> None:
    """Numbers are widths, and a text may be put in as often as another is long."""
    made = 1.0
    for value in values:
        if isinstance(value, list | tuple):
            made *= max(1, len(value), sum(len(str(item)) for item in value))
        elif isinstance(value, str):
            made *= max(1, len(value))
        elif isinstance(value, int | float) and abs(value) > ALLOWANCE:
            made = math.inf
    if made > LARGEST:
        raise jinja2.exceptions.SecurityError(f"{name} makes too much")


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


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
