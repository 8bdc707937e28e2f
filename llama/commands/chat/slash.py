"""What a line that begins with a slash does: a new one is a function and a line of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama.commands.chat.conversation import Conversation
from llama.data.records import read_records
from llama.errors import UserError
from llama.files.atomic import write_file
from llama.files.inputs import nearest
from llama.files.json_text import json_text

Sides = Sequence[Conversation]
"""The conversation, or both that are compared, the adapter's last."""


@dataclass(frozen=True)
class SlashCommand:
    """One line of `/help`."""

    argument: str
    """What may follow it, as `/help` shows it; empty where nothing may."""
    meaning: str
    run: Callable[[Sides, str], str]
    """Does it, given what follows, and says what came of it. Raises UserError where it cannot, and
    EOFError to leave."""


def obeyed(text: str, sides: Sides) -> str | None:
    """Do what `text` asks for and say what came of it; None where it is no command but a message:
    one that begins with no slash, or has several lines and begins with no known one."""
    word, _, rest = text.partition(" ")
    if not text.startswith("/"):
        return None
    command = COMMANDS.get(word)
    if command is None:
        if "\n" in text:
            return None
        known = f"{', '.join(COMMANDS)}; a message may begin with a space and then a slash"
        raise UserError(f"unknown command {word}{nearest(word, COMMANDS)} (known: {known})")
    if rest.strip() and not command.argument:
        raise UserError(f"{word}: expected nothing behind it, found {rest.strip()!r}")
    return command.run(sides, rest.strip())


def _reset(sides: Sides, _: str) -> str:
    for side in sides:
        side.reset()
    return "the conversation begins anew" + (", with its system message" * bool(sides[0].system))


def _system(sides: Sides, text: str) -> str:
    for side in sides:
        side.system = text or None
    return f"system message: {text or 'what the template says'}"


def _save(sides: Sides, name: str) -> str:
    if not name:
        raise UserError("/save: expected a file, as /save rows.jsonl")
    conversation = sides[-1]
    if not conversation.exchanges:
        raise UserError("/save: nothing has been said yet")
    if len(name) > 2 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]  # as one quotes a name for a shell
    path = Path(name).expanduser()
    try:
        before, rows = _rows_before(path)
        row = json_text(conversation.row(), ensure_ascii=False)
        write_file(path, before + row.encode() + b"\n")
    except OSError as error:
        raise UserError(f"/save: {path} cannot be written: {error.strerror or error}") from None
    unlearnt = sum(not exchange.is_whole for exchange in conversation.exchanges)
    said = f"{path}: row {rows + 1}, of {len(conversation.exchanges)} messages and answers"
    if unlearnt:
        said += f"; {unlearnt} unfinished: `train` is false there, so that nobody learns to end so"
    return said


def _rows_before(path: Path) -> tuple[bytes, int]:
    """What the file holds already, and how many rows that is."""
    if path.is_dir():
        raise UserError(f"/save: {path} is a folder; a file is expected")
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return b"", 0
    records, unit = read_records(path)
    if unit != "line" or not all(isinstance(record, dict) for _, record in records):
        raise UserError(f"/save: {path} is there and is no JSONL file of rows: name another")
    before = path.read_bytes()
    return before if before.endswith(b"\n") else before + b"\n", len(records)


def _help(_: Sides, __: str) -> str:
    shown = {f"{word} {command.argument}".strip(): command for word, command in COMMANDS.items()}
    width = max(map(len, shown))
    lines = [f"{words:{width}}  {command.meaning}" for words, command in shown.items()]
    return "\n".join([*lines, *(f"{key:{width}}  {meaning}" for key, meaning in KEYS.items())])


def _exit(_: Sides, __: str) -> str:
    raise EOFError


COMMANDS = {
    "/reset": SlashCommand("", "forget what was said", _reset),
    "/system": SlashCommand(
        "TEXT", "what the model is told first; alone: its template's own", _system
    ),
    "/save": SlashCommand("FILE", "add the conversation to FILE, as a row for train", _save),
    "/help": SlashCommand("", "this list", _help),
    "/exit": SlashCommand("", "leave", _exit),
}
KEYS = {
    "Ctrl-C": "end the answer; what was said stays",
    "Alt-Enter": "a new line within a message",
    "Ctrl-D": "leave",
}
