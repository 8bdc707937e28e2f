"""Renders chat templates that came with a model from elsewhere: sandboxed, of bounded output."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama.errors import UserError

ALLOWANCE = 1_000_000
"""Characters that a template may add to the contents it is given."""
LARGEST = 1 << 26
"""Characters of any text on the way, or elements of any list."""
DEEPEST_INDENT = 64
"""Characters by which `tojson` indents a level."""
CLOCK = "strftime_now"
"""What a template calls that writes the date: it writes another text tomorrow."""
LEFT_OUT = frozenset({"random"})
"""Of Jinja's filters: a prompt must be the same whenever it is written."""
GROWING = frozenset(
    {"batch", "center", "format", "indent", "join", "replace", "slice", "sum"}
    | {"urlize", "wordwrap", "xmlattr"}
)
"""Filters that can make much out of little: of their arguments' sizes the product is bounded."""
_WIDTH = re.compile(r"\d{6}|\*|:[^}]*\{")
"""In a format: a width of a million, or one that is given beside it."""
_AN_OBJECT = 32
"""Characters that a number or the like takes, roughly and at least."""


def compile_template(source: str, name: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from variables to text; both it and this raise UserError naming `name`.

    The environment is the one that Hugging Face's templates are written for, transformers'
    `utils/chat_template_utils.py`: its functions, tags, filters and treatment of white space.
    """
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_checked,
        extensions=[_GenerationTag, loopcontrols],
    )
    environment.filters = {
        name: _guarded(filter_, grows=name in GROWING)
        for name, filter_ in environment.filters.items()
        if name not in LEFT_OUT
    }
    environment.filters["tojson"] = _to_json
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise_exception
    environment.globals[CLOCK] = _strftime_now
    try:
        template = environment.from_string(source)
    except Exception as error:  # Python's own too: `break` outside a loop is its SyntaxError.
        raise UserError(f"{name}: is not a valid Jinja template ({_one_line(error)})") from None

    def render(variables: Mapping[str, Any]) -> str:
        room = ALLOWANCE + 4 * _written(variables)
        parts: list[str] = []
        try:
            for part in template.generate({"tools": None, "documents": None, **variables}):
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

    def buffer(self, frame: Frame) -> None:
        """Where a macro, a `set` block or a `filter` block gathers what it writes."""
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.gathered()")


class _Gathered(list[str]):
    """Pieces of a text, of bounded length."""

    _length = 0

    def append(self, piece: str, /) -> None:
        self._length += len(piece)
        if self._length > LARGEST:
            raise jinja2.exceptions.SecurityError("a block makes too much")
        super().append(piece)

    def extend(self, pieces: Iterable[str], /) -> None:
        for piece in pieces:
            self.append(piece)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with nothing that makes much out of little."""

    code_generator_class = _CodeGenerator
    gathered = _Gathered
    intercepted_binops = frozenset({"+", "%", "*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        much = {
            "+": lambda: _length(left) + _length(right) > LARGEST,
            "%": lambda: isinstance(left, str) and (_too_wide(left) or _written(right) > LARGEST),
            "*": lambda: _size(left) * _size(right) > ALLOWANCE,
            "**": lambda: True,
        }
        if much[operator]():
            raise jinja2.exceptions.SecurityError(f"{operator} makes too much")
        return super().call_binop(context, operator, left, right)

    def joined(self, parts: tuple[Any, ...]) -> str:
        if sum(map(_written, parts)) > LARGEST:
            raise jinja2.exceptions.SecurityError("~ makes too much")
        return "".join(map(str, parts))

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _too_wide(value.__self__):
            raise jinja2.exceptions.SecurityError("format makes too much")
        return wrapped

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            _check_made(function.__name__, (owner, *args, *kwargs.values()))
        return super().call(context, function, *args, **kwargs)


def _too_wide(format_: str) -> bool:
    return _WIDTH.search(format_) is not None


_PLAIN = (str, int, float, list, tuple, dict)
"""Arguments that are looked at; others are Jinja's own, or functions."""


def _checked(value: Any) -> Any:
    """`value`, which is about to be written."""
    if not isinstance(value, str | jinja2.Undefined) and _written(value) > LARGEST:
        raise jinja2.exceptions.SecurityError("a value makes too much")
    return value


def _guarded(function: Callable[..., Any], grows: bool) -> Callable[..., Any]:
    """A filter that may not make much out of its arguments."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        values = [list(v) if hasattr(v, "__next__") else v for v in args]
        given = [v for v in (*values, *kwargs.values()) if isinstance(v, _PLAIN)]
        if sum(map(_written, given)) > LARGEST:
            raise jinja2.exceptions.SecurityError(f"{function.__name__} makes too much")
        if grows:
            _check_made(function.__name__, given)
        if function is do_format and _too_wide(str(values[0])):
            raise jinja2.exceptions.SecurityError("format makes too much")
        return function(*values, **kwargs)

    return guarded


def _written(value: Any) -> int:
    """Characters of `value` written out, roughly. What stands in it more than once is counted as
    often as it stands there, though looked at once: twenty lists of one another are long."""
    seen: dict[int, int] = {}

    def of(part: Any) -> int:
        if isinstance(part, str):
            return len(part)
        if not isinstance(part, Mapping | list | tuple):
            return _AN_OBJECT
        if id(part) not in seen:
            seen[id(part)] = 0  # One that holds itself is written as `...` there.
            inner = [*part, *part.values()] if isinstance(part, Mapping) else part
            seen[id(part)] = _AN_OBJECT + sum(map(of, inner))
        return seen[id(part)]

    return of(value)


def _check_made(name: str, values: Sequence[Any]) -> None:
    """Numbers are widths, and a text may be put in as often as another is long."""
    made = 1.0
    for value in values:
        if isinstance(value, list | tuple):
            made *= max(1, len(value), sum(map(_written, value)))
        elif isinstance(value, str):
            made *= max(1, len(value))
        elif isinstance(value, int | float) and abs(value) > ALLOWANCE:
            made = math.inf
    if made > LARGEST:
        raise jinja2.exceptions.SecurityError(f"{name} makes too much")


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks answers for Hugging Face. Here it is no more
    than a block with names of its own, as there: answers are found by position in any template."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

    def written(self, caller: Callable[[], str]) -> str:
        return caller()


def _size(factor: Any) -> float:
    """How much a factor of `*` makes of the other: the number itself, or a sequence's length."""
    return len(factor) if hasattr(factor, "__len__") else abs(factor)


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def day_written(source: str) -> str | None:
    """The day that a template of `source` writes now, or the whole of SOURCE_DATE_EPOCH; None where
    it asks for no date."""
    if CLOCK not in source:
        return None
    return os.environ.get("SOURCE_DATE_EPOCH") or _strftime_now("%Y-%m-%d")


def _strftime_now(format_: str) -> str:
    """Now, in local time; where SOURCE_DATE_EPOCH is set, that time in UTC, which gives a run
    of several days one date (https://reproducible-builds.org/specs/source-date-epoch/)."""
    if len(format_) > DEEPEST_INDENT or _too_wide(format_):
        raise jinja2.exceptions.SecurityError("strftime_now makes too much")
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.now() if epoch is None else datetime.fromtimestamp(int(epoch), timezone.utc)
    return now.strftime(format_)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML."""
    wide = len(indent) if isinstance(indent, str) else indent or 0
    marks = sum(map(len, separators)) if separators else 0
    if max(wide, marks) > DEEPEST_INDENT or _written(value) > LARGEST:
        raise jinja2.exceptions.SecurityError("tojson makes too much")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
