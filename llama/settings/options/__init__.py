"""From a dataclass to a command line: every field is an option, the docstring under it its help.

A field's type decides what the option takes:

    str, int, float, bool, Path   one value; a bool may stand bare: `--pack` is `--pack true`,
                                  and so may what is marked so
    Literal["a", "b"]             one of the choices
    X | None                      an X; absent (in YAML also `null`) means None
    tuple[str, ...]               names joined by commas: `wq,wv`
    tuple[tuple[str, str], ...]   pairs of names: `output=answer,instruction=question`
    list[str]                     the option repeated: `--override a=1 --override b=2`
    list[Path]                    the same, or several joined by commas: `--data a,b --data c`
    a dataclass                   its fields, dotted: `--lora.rank`

Values of the list that is marked positional may also stand alone: `report.py RUN RUN`; behind `--`
however they begin: `generate.py -- -5`.

Any other option may stand on a command line once; `--seq-len` is `--seq_len`. `--config FILE.yaml`
takes the same options, nested or dotted; the command line wins, in a list of `KEY=VALUE` key by
key. A file may serve several commands: what only another one has is named in a note. What another
trainer calls differently is answered with where it lives here (`elsewhere`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

from llama.errors import TrainingError, UserError, raise_if
from llama.launch.ranks import adopt
from llama.notes import is_first_rank, say, say_where_the_log_is
from llama.settings.options.declare import CONFIG, build, declared, help_text
from llama.settings.options.read import THE_REST, merged_by_key, read_arguments, read_yaml
from llama.settings.options.shared import names_of_all_commands
from llama.settings.options.values import value_of

__all__ = ["parse", "run_command"]

T = TypeVar("T")

SECONDS_FOR_THE_FIRST_RANK = 10.0


def parse(cls: type[T], argv: list[str], prog: str, description: str) -> T:
    """An instance of the dataclass `cls` from a command line. Prints the help and exits with 0 on
    `-h`; raises one `UserError` with every problem found."""
    options = {option.name: option for option in declared(cls)}
    named = argv[: argv.index(THE_REST)] if THE_REST in argv else argv
    if "-h" in named or "--help" in named:
        if is_first_rank():
            print(help_text(options.values(), prog, description), end="")
        raise SystemExit(0)
    problems: list[str] = []
    given = read_arguments(argv, options, problems)
    if config := given.pop(CONFIG, None):
        file = Path(config.texts[0] or "")
        in_file = read_yaml(file, options, names_of_all_commands(), problems)
        by_key = {name for name in in_file.keys() & given.keys() if options[name].by_key}
        both = {name: merged_by_key(in_file[name], given[name]) for name in by_key}
        given = in_file | given | both
    values: dict[str, Any] = {}
    for name, option in options.items():
        if name in given:
            try:
                for text in given[name].texts:
                    _require_text(text or "")
                values[name] = value_of(option, given[name].texts)
            except ValueError as error:
                problems.append(f"{given[name].where}: {error}")
        elif option.default is MISSING:
            alone = f": {prog} {name.upper()}..." if option.positional else ""
            problems.append(f"--{name}: required, and not given{alone}")
    raise_if(problems)
    return build(cls, values)


def _require_text(text: str) -> None:
    """Raise `ValueError` where `text` holds bytes that are no text, which Python keeps as halves of
    surrogate pairs: no tokenizer, and no file that this writes, takes those."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = len(text[: error.start].encode())
        raise ValueError(f"not UTF-8 at byte {before}: {text!a}; give it in UTF-8") from None


def run_command(
    run: Callable[[T], int | None],
    cls: type[T],
    prog: str,
    description: str,
    argv: list[str] | None = None,
) -> int:
    """Parse the command line, run the command, and give its exit status: what `run` returned (None
    is 0), 2 for a user's mistake, 1 for a run that went wrong, 130 for Ctrl-C. Of several ranks,
    whatever started them, only the first says what the mistake was: all of them check the same. Any
    other exception passes through."""
    adopt(os.environ)
    try:
        return run(parse(cls, sys.argv[1:] if argv is None else argv, prog, description)) or 0
    except UserError as error:
        if not is_first_rank():
            # Launchers end every rank when one has ended: let the first one speak. What only this
            # rank saw (a file missing on its host) it then says itself.
            time.sleep(SECONDS_FOR_THE_FIRST_RANK)
        for problem in error.problems:
            say(f"error: {problem}")
        return 2
    except TrainingError as error:
        say_where_the_log_is()
        say("\n".join(f"error: {line}" for line in str(error).splitlines()))
        return 1
    except KeyboardInterrupt:
        return 130
