"""No rank outlives its launcher.

`torchrun` passes a SIGTERM on to its ranks. `deepspeed` is two processes, a runner and inside it
`launch.py`, and where the runner ends, or `launch.py` is killed, the ranks live on and keep their
GPUs. So each rank watches what started it. Imported before torch, whose own import takes seconds
in which a launcher may end.
"""

from __future__ import annotations

import os
import threading
import time

import psutil

from llama.notes import say

GONE = threading.Event()
"""Set once a launcher of this rank has ended: the rank is to save, if it can, and end."""

SAVES = threading.Event()
"""Set while this rank saves once `GONE` is: so that it says so."""

GRACE = 25.0
"""Seconds from there to the end of this rank, saved or not."""

_POLL = 1.0
_MODULES = (
    "torch.distributed.run",
    "torch.distributed.launch",
    "deepspeed.launcher.launch",
    "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli",
)
_SCRIPTS = ("torchrun", "deepspeed", "deepspeed.pt", "accelerate", "accelerate-launch")
_SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ksh", "tcsh", "csh")
_MARKS = (("TORCHELASTIC_RUN_ID", "GROUP_RANK"), ("CROSS_RANK", "CROSS_SIZE"))
"""What torchrun and deepspeed put in the environment of a rank, beside RANK and WORLD_SIZE."""


def follow_launcher() -> None:
    """Watch the launcher of this process from now on, in a thread, where there is one: once it has
    gone, set `GONE`, and `GRACE` seconds later end the process with 143."""
    try:
        launchers = launcher_processes()
        left_behind = not launchers and is_left_behind()
    except (psutil.Error, OSError):  # hidden from this user: then nobody can be watched
        return
    if launchers or left_behind:
        threading.Thread(target=_follow, args=(launchers,), name="launcher", daemon=True).start()


def launcher_processes() -> list[psutil.Process]:
    """The nearest launcher above this process, then the runner that started it, if one did. None of
    a user's own processes: a shell, tmux or a job's script may end and leave the run behind."""
    above = psutil.Process().parents()
    for index, process in enumerate(above):
        if is_launcher(process.cmdline()):
            return [process, *(p for p in above[index + 1 : index + 2] if is_launcher(p.cmdline()))]
    return []


def is_left_behind() -> bool:
    """Whether this is a rank whose launcher went before it could be looked at. The variables of a
    launcher alone say nothing, a shell may have kept them; but a launcher starts its ranks in
    sessions of their own, and who takes in an orphan is init or its like."""
    told = any(
        all(name in os.environ for name in (*marks, "RANK", "WORLD_SIZE")) for marks in _MARKS
    )
    parent = psutil.Process().parent() if told else None
    if parent is None:  # of a container's first process, which nobody can have left
        return False
    starts_commands = _is_python(parent.cmdline()) or parent.name() in _SHELLS
    return not starts_commands and os.getsid(parent.pid) != os.getsid(0)


def is_launcher(command: list[str]) -> bool:
    """Whether a command line is Python running a launcher, by its script or its module."""
    if not _is_python(command):
        return False
    words = iter(command[1:])
    for word in words:
        if word == "-m":
            return next(words, "") in _MODULES
        if word in ("-X", "-W"):
            next(words, None)
        elif not word.startswith("-"):
            path = word.replace(os.sep, "/").removesuffix(".py")
            module = path.replace("/", ".")
            return path.rpartition("/")[2] in _SCRIPTS or module.endswith(_MODULES)
    return False


def _is_python(command: list[str]) -> bool:
    return bool(command) and os.path.basename(command[0]).startswith("python")


def _follow(launchers: list[psutil.Process]) -> None:
    while launchers and all(_is_alive(process) for process in launchers):
        time.sleep(_POLL)
    GONE.set()
    rank = os.environ.get("RANK", "0")
    does = "saving after this step, then ending too" if SAVES.is_set() else "ending too"
    say(f"rank {rank}: its launcher has ended: {does}, within {GRACE:.0f} s")
    time.sleep(GRACE)
    os._exit(143)


def _is_alive(process: psutil.Process) -> bool:
    """A zombie has ended too: whoever started the launcher has not asked for its status yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
