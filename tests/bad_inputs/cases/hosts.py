"""The hostfile, as doctor reads it before anything is started on a host."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.bad_inputs.setting import Case, Setting


def doctor(name: str, spoil: Callable[[Setting], object], *says: str) -> Case:
    return Case(name, spoil, says, "doctor")


def lines(*given: str) -> Callable[[Setting], object]:
    return lambda setting: setting.path("hosts").write_text("\n".join(given))


def fifo(setting: Setting) -> None:
    setting.path("hosts").unlink()
    os.mkfifo(setting.path("hosts"))


CASES = [
    doctor("a file that is not there", lambda s: s.path("hosts").unlink(), "does not exist"),
    doctor("a FIFO", fifo, "is not a regular file"),
    doctor("no host", lines("# none"), "names no host"),
    doctor("a host twice", lines("a slots=1", "b slots=1", "a slots=1"), "line 3: a is on line 1"),
    doctor("`slots=0`", lines("a slots=0"), "found '0'"),
    doctor("`slots=2x`", lines("a slots=2x"), "found '2x'"),
    doctor("no slots", lines("a"), "expected HOST slots=N, found 'a' alone"),
    doctor("an option in place of a host", lines("-oProxyCommand=x slots=1"), "begins with none"),
    doctor("a host with a metacharacter", lines("a;reboot slots=1"), "found 'a;reboot'"),
    doctor(
        "three mistakes at once",
        lines("a slots=0", "$(reboot) slots=1", "b slot=1"),
        *("line 1", "line 2", "line 3"),
    ),
]
