"""Where options are written: the words of a command line, and a YAML file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from llama.errors import UserError
from llama.files.inputs import nearest, read_text
from llama.files.run_folder import option_of
from llama.settings.options.answers import answer, row_of
from llama.settings.options.declare import CONFIG, Option
from llama.settings.options.foreign import Foreign

LOCAL_RANK = "local_rank"
"""Accepted and ignored: the deepspeed launcher passes it to every rank, and the environment says
the same."""

THE_REST = "--"
"""Every word behind it is a value of the option that is positional, however it begins."""

_OPTION = re.compile(r"--[A-Za-z_]")
_SHORT = re.compile(r"-[A-Za-z]")
"""What other programs call an option; here only -h is so short."""
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Given:
    """An option as it was written: where (`--lora.rank`, or `run.yaml: line 3: lora.rank`), and
    its text, or texts where it was repeated. None is a YAML null."""

    where: str
    texts: list[str | None]


def read_arguments(
    argv: list[str], options: Mapping[str, Option], problems: list[str]
) -> dict[str, Given]:
    """`--name value` and `--name=value` by name; only an option that is a list may stand twice.

    The next word is the value unless it looks like an option, so `--lora.alpha -1` and `--prompt
    '- x'` mean what they say; a value such as `--x` is written `--prompt=--x`. Words that are
    neither are values of the option that is positional, where there is one; what would be an option
    elsewhere, as `-n`, is so behind `--` alone."""
    known = [*options, CONFIG, LOCAL_RANK]
    bare = next((name for name, option in options.items() if option.positional), None)
    given: dict[str, Given] = {}
    words = list(reversed(argv))
    while words:
        word = words.pop()
        if not _OPTION.match(word):
            texts = _unnamed(word, options, bare, words, problems)
            if bare is not None and texts:
                earlier = given[bare].texts if bare in given else []
                given[bare] = Given(f"--{bare}", [*earlier, *texts])
            continue
        written, equals, rest = word.removeprefix("--").partition("=")
        name = ours(written, known)
        if name not in known:
            problems.append(_unknown(written, rest if equals else None, words, known))
            continue
        text = rest if equals else _next_value(name, options, words)
        if text is None:
            problems.append(f"--{name}: its value is missing")
            continue
        earlier = given[name].texts if name in given else []
        if earlier and name != LOCAL_RANK and not (name in options and options[name].repeated):
            problems.append(f"--{name}: given twice; keep one")
            continue
        given[name] = Given(f"--{name}", [*earlier, text])
    given.pop(LOCAL_RANK, None)
    return given


def _unnamed(
    word: str,
    options: Mapping[str, Option],
    bare: str | None,
    words: list[str],
    problems: list[str],
) -> list[str]:
    """The values of the option `bare` that `word` stands for, which names no option; all of `words`
    where it is `--`. A problem for each that is none: to answer a mistyped option, or the name of a
    run, as if it were a prompt would be an answer to another question."""
    if _SHORT.match(word):
        if words and _is_value(words[-1], False):
            words.pop()
        behind = f"; a value that begins so stands behind {THE_REST}" if bare else ""
        problems.append(f"{word}: unknown option; --help lists those that there are{behind}")
        return []
    texts = [word]
    if word == THE_REST:
        texts = words[::-1]
        words.clear()
    elif bare and options[bare].takes_texts and (meant := _meant(word, options)):
        problems.append(f"{word!r} is no text{meant} As a text it stands behind {THE_REST}")
        return []
    if bare is None:
        problems += [f"unexpected argument {text!r}{_meant(text, options)}" for text in texts]
    return texts


def _meant(word: str, options: Mapping[str, Option]) -> str:
    """`; did you mean --adapter RUN?` where `word` is a run's folder, or an adapter's."""
    name, value = option_of(word) or ("", "")
    return f"; did you mean --{name} {value}?" if name in options else ""


def ours(written: str, known: Collection[str]) -> str:
    """The name as we write it: dashes for underscores mean the same."""
    plain = written.replace("-", "_")
    return plain if written not in known and plain in known else written


def _next_value(name: str, options: Mapping[str, Option], words: list[str]) -> str | None:
    """The value of `name` taken off `words`, the next one last; None where it is missing."""
    option = options.get(name)
    is_bool = option is not None and option.kind is bool
    if words and _is_value(words[-1], is_bool):
        return words.pop()
    return option.bare if option else None


def _is_value(word: str, is_bool: bool) -> bool:
    return word.lower() in ("true", "false") if is_bool else not _OPTION.match(word)


def _unknown(written: str, text: str | None, words: list[str], known: list[str]) -> str:
    """The line for an option that is not ours. Its values are taken off `words`: one, or, where
    another trainer has it, as many as stand there (`--target_modules q_proj v_proj`)."""
    name = written.replace("-", "_")
    if text is None:
        values: list[str] = []
        while words and _is_value(words[-1], False) and (row_of(name) or not values):
            values.append(words.pop())
        text = ",".join(values) if values else None
    said = answer(name, text)
    return f"--{written}" + (said or f": unknown option{nearest(written, known, '--')}")


def read_yaml(
    path: Path, options: Mapping[str, Option], of_others: Collection[str], problems: list[str]
) -> dict[str, Given]:
    """The options of a YAML file, nested (`lora: {rank: 8}`) or dotted (`lora.rank: 8`). Scalars
    are kept as the text that was written: an option's type, not YAML, decides what `1e-4`, `no`
    or `007` mean. One file may serve several commands: what is not of this one but of `of_others`
    is named in a note."""
    given: dict[str, Given] = {}
    foreign = Foreign(path, of_others)
    try:
        root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
        for written, node in _leaves(root, "", path, set()) if root else ():
            line = node.start_mark.line + 1
            name = ours(written, options)
            where = f"{path}: line {line}: {written}"
            if name in given:
                problems.append(f"{where}: given twice")
            elif name in options:
                given[name] = Given(where, _texts(node, where))
            elif not foreign.takes(written, node):
                problems.append(f"{where}: unknown option{nearest(written, options)}")
    except UserError as error:
        problems.extend(error.problems)
    except yaml.YAMLError as error:
        problems.append(f"{path}: {_why(error)}")
    except RecursionError:
        problems.append(f"{path}: nested too deeply")
    problems.extend(foreign.problems())
    foreign.note()
    return given


def merged_by_key(in_file: Given, typed: Given) -> Given:
    """Both lists of `KEY=VALUE`, the typed one last, less what the file has of a typed key."""
    keys = {(text or "").partition("=")[0] for text in typed.texts}
    kept = [text for text in in_file.texts if (text or "").partition("=")[0] not in keys]
    return Given(typed.where, [*(kept if kept != [None] else []), *typed.texts])


def _why(error: yaml.YAMLError) -> str:
    """The complaint without the excerpts of the file that go with it."""
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    reason = getattr(error, "problem", None) or " ".join(str(error).split())[:200]
    return f"{line}not YAML: {reason}"


def _leaves(
    node: yaml.Node, prefix: str, path: Path, seen: set[int]
) -> Iterator[tuple[str, yaml.Node]]:
    """Dotted names and their nodes, depth first."""
    line = node.start_mark.line + 1
    if id(node) in seen:  # expanding aliases could go on for ever
        raise UserError(f"{path}: line {line}: anchors and aliases are not supported")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{path}: line {line}: expected the name of an option as key")
            if key.value in keys:
                raise UserError(f"{path}: line {line}: {key.value}: given twice")
            keys.add(key.value)
            yield from _leaves(value, f"{prefix}.{key.value}".removeprefix("."), path, seen)
    elif prefix:
        yield prefix, node
    else:
        raise UserError(f"{path}: line {line}: expected a mapping from options to values")


def _texts(node: yaml.Node, where: str) -> list[str | None]:
    """The text of a scalar, or of each scalar in a list."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(item, yaml.ScalarNode) for item in items):
        raise UserError(f"{where}: expected a value or a list of values")
    return [None if item.tag == _NULL else item.value for item in items]
