"""Run a module of this package on this machine or on hosts by ssh, as `deepspeed --hostfile` will:
the same interpreter, working folder, exported variables and options of ssh, and never a question.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.commands.doctor.probe import MARK
from llama.errors import UserError, raise_if
from llama.files.inputs import read_text

SSH_ARGUMENTS = "PDSH_SSH_ARGS_APPEND"
"""The variable by which pdsh, and so DeepSpeed, takes more options of ssh."""

_CONNECT_SECONDS = 10
_LINE_LIMIT = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX")  # by these beginnings, and with CUDA also NCCL
_ENVIRONMENT_FILE = ".deepspeed_env"


@dataclass(frozen=True)
class Reply:
    """What a host answered."""

    records: list[dict[str, Any]]
    """The marked lines, each with `received`, the time here when it came."""
    status: int | None
    """Exit status, ssh's own included; None where the time was up."""
    said: str
    """The last other line, of either output."""


def ssh_command(host: str, port: int | None) -> list[str]:
    """The words before the remote command. What stands first wins with ssh: no question is asked
    whatever the user's options are, and a limit of theirs on connecting stands before ours."""
    try:
        more = shlex.split(os.environ.get(SSH_ARGUMENTS, ""))
    except ValueError as error:
        raise UserError(f"{SSH_ARGUMENTS}: {error}") from None
    words = ["ssh", "-o", "BatchMode=yes", "-a", "-x", *more]
    if port is not None:
        words += ["-p", str(port)]
    return [*words, "-o", f"ConnectTimeout={_CONNECT_SECONDS}", "--", host]


def remote_command(arguments: Sequence[str], exports: Sequence[str]) -> str:
    """The line that a host's shell is given: `export ...; cd FOLDER && exec PYTHON -u ...`."""
    run = shlex.join(["exec", sys.executable, "-u", *arguments])
    return "; ".join([*exports, f"cd {shlex.quote(os.getcwd())} && {run}"])


def exports(environment: Mapping[str, str], has_cuda: bool) -> list[str]:
    """The `export NAME=VALUE` that DeepSpeed gives every host: variables by their first letters,
    and the lines of `.deepspeed_env` from the home folder and the working folder. Raises one
    `UserError` with every line of that file which would break its command."""
    beginnings = (*_EXPORTED, "NCCL") if has_cuda else _EXPORTED
    values = {
        name: shlex.quote(value)
        for name, value in environment.items()
        if name.startswith(beginnings) and _NAME.fullmatch(name)
    }
    path = [os.getcwd(), *filter(None, [environment.get("PYTHONPATH")])]
    values["PYTHONPATH"] = shlex.quote(":".join(path))
    problems: list[str] = []
    for folder in (Path.home(), Path()):
        file = folder / environment.get("DS_ENV_FILE", _ENVIRONMENT_FILE)
        if file.is_file():
            values |= _environment_file(file, problems)
    raise_if(problems)
    return [f"export {name}={value}" for name, value in values.items()]


def _environment_file(file: Path, problems: list[str]) -> dict[str, str]:
    """Values as shell words in double quotes, where $NAME means what it means for DeepSpeed."""
    values = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        name, equals, value = line.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()):
            found = f"expected NAME=VALUE, found {line!r}"
            why = "DeepSpeed allows no comment and no empty line here"
            problems.append(f"{file}: line {number}: {found}; {why}")
        elif re.search(r'["`\\]|\$\(', value):
            problems.append(f"{file}: line {number}: a shell would act on {value.strip()!r}")
        else:
            values[name.strip()] = f'"{value.strip()}"'
    return values


def ask(commands: Sequence[Sequence[str]], limit: float) -> list[Reply]:
    """Start every command at once, and read each until it ends; `limit` is in seconds for all."""
    deadline = time.monotonic() + limit
    talks: list[_Talk] = []
    try:
        talks += [_Talk(command) for command in commands]
        return [talk.reply(deadline) for talk in talks]
    finally:
        for talk in talks:
            talk.end()


class _Talk:
    """One command and the thread that reads it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what a ProxyCommand starts ends with it
        )
        self._records: list[dict[str, Any]] = []
        self._others: deque[str] = deque([""], maxlen=1)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(_LINE_LIMIT):
            text = line.decode(errors="replace").strip()
            if (record := _record(text)) is not None:
                self._records.append(record | {"received": time.time()})
            elif text:
                self._others.append(printable(text))

    def reply(self, deadline: float) -> Reply:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        try:
            status = self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
        return Reply(list(self._records), status, self._others[-1])

    def end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _record(text: str) -> dict[str, Any] | None:
    """What a marked line holds; a shell's greeting is no such line."""
    if not text.startswith(MARK):
        return None
    try:
        record = json.loads(text.removeprefix(MARK))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def printable(text: str, limit: int = 200) -> str:
    """A host's own words with nothing that a terminal would act on."""
    return "".join(c if c.isprintable() else " " for c in text)[:limit].strip()
