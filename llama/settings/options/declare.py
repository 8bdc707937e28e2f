"""What a dataclass declares: its options, their help, and an instance from their values."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from llama.settings.options.marks import BARE, BY_KEY, POSITIONAL

T = TypeVar("T")

CONFIG = "config"
"""The option that names a YAML file of the others; no dataclass may declare it."""


@dataclass(frozen=True)
class Option:
    """One option of a command."""

    name: str
    """Dotted where it belongs to a nested dataclass: `lora.rank`."""
    kind: Any
    """The field's type, without `| None`."""
    optional: bool
    """Whether None is allowed."""
    default: Any
    """MISSING where the option is required."""
    meaning: str
    positional: bool = False
    """Whether its values may stand without its name."""
    by_key: bool = False
    """Whether each of its values is a setting of its own, `KEY=VALUE`."""
    bare: str | None = None
    """What its name means without a value; None where one must follow."""

    @property
    def repeated(self) -> bool:
        return typing.get_origin(self.kind) is list

    @property
    def takes_texts(self) -> bool:
        """Whether its values are texts that mean nothing but themselves."""
        return self.repeated and typing.get_args(self.kind) == (str,)

    @property
    def metavar(self) -> str:
        if typing.get_origin(self.kind) is Literal:
            return "{" + ",".join(typing.get_args(self.kind)) + "}"
        if typing.get_origin(self.kind) is tuple:
            of_pairs = typing.get_origin(typing.get_args(self.kind)[0]) is tuple
            return "NEW=OLD,NEW=OLD" if of_pairs else "NAME,NAME"
        if self.repeated:
            texts = "TEXT" if self.positional else "KEY=VALUE"
            return "PATH" if typing.get_args(self.kind) == (Path,) else texts
        names = {str: "TEXT", int: "N", float: "X", bool: "true|false", Path: "PATH"}
        return names[self.kind]


def declared(cls: Any, prefix: str = "") -> Iterator[Option]:
    """The options of a dataclass in order, those of nested dataclasses dotted."""
    hints = typing.get_type_hints(cls)
    docs = field_docs(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from declared(kind, f"{prefix}{field.name}.")
            continue
        optional = typing.get_origin(kind) in (types.UnionType, typing.Union)
        if optional:
            (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
        factory = field.default_factory
        default = field.default if factory is MISSING else factory()
        marks = dict(field.metadata)
        bare = BARE["bare"] if kind is bool or marks == BARE else None
        name, meaning = prefix + field.name, docs[field.name]
        is_positional, by_key = marks == POSITIONAL, marks == BY_KEY
        yield Option(name, kind, optional, default, meaning, is_positional, by_key, bare)


def field_docs(cls: Any) -> dict[str, str]:
    """The docstring under each field of a dataclass, those of its bases included."""
    docs: dict[str, str] = {}
    for base in cls.__mro__:
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(cast(type, base)))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                docs.setdefault(field.target.id, " ".join(str(below.value.value).split()))
    return docs


def build(cls: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """An instance of `cls` from dotted names to values; what is absent keeps its default."""
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, cls)):
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = build(hints[field.name], values, f"{name}.")
        elif name in values:
            arguments[field.name] = values[name]
    return cls(**arguments)


def help_text(options: Iterable[Option], prog: str, description: str) -> str:
    """What `--help` prints: every option with its meaning and its default."""
    options = list(options)
    words = "".join(f" {option.name.upper()}..." for option in options if option.positional)
    parser = argparse.ArgumentParser(
        prog=prog, usage=f"{prog}{words} [options]", description=description, add_help=False
    )
    parser.add_argument("-h", "--help", action="store_true", help="print this and exit")
    meaning = "a file of these options, nested or dotted; the command line wins (default: none)"
    parser.add_argument(f"--{CONFIG}", metavar="FILE.yaml", help=meaning)
    for option in options:
        required = option.default is MISSING
        default = "required" if required else f"default: {_shown(option.default)}"
        named = f"; --{option.name} may be left out" if option.positional else ""
        meaning = f"{option.meaning} ({default}{named})".replace("%", "%%")
        parser.add_argument(f"--{option.name}", metavar=option.metavar, help=meaning)
    return parser.format_help()


def _shown(value: Any) -> str:
    """A default as the user would write it."""
    if isinstance(value, tuple | list):
        return ",".join(value) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)
