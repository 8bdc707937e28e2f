"""How a rank ends before its time: asked to, left by its launcher, or hung.

The first SIGTERM or SIGINT asks: training stops after the step in progress, or within an
evaluation, saves once and exits with 143 or 130. A signal may reach one rank alone, so after each
step, and every few micro-batches of an evaluation, the ranks agree on the highest `wish` among
them. A second signal ends the process at once; what was saved earlier stays
whole.

All is decided in a thread of its own. Python runs a signal's handler between two instructions of
the main thread, and one that waits for another rank inside a collective never comes to the next.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

from llama.errors import TrainingError
from llama.files import life
from llama.launch.parent import GONE, SAVES
from llama.notes import say

_WISHES = (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses, the one that prevails last: at a terminal, Ctrl-C reaches a rank as SIGINT, and
as the SIGTERM that its launcher passes on."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_SAME = 1.0
"""Seconds in which signals are one request: a whole process group may be signalled, and its
launcher then signals the ranks once more."""

_TICK = 1.0
_TO_SPEAK_FIRST = 10.0
"""A rank that waits for others in a collective reports so many seconds after the one that hangs,
or its launcher would end that one before it has said where it stands."""

_COLLECTIVES = (os.path.join("torch", "distributed", ""), os.path.join("llama", "parallel", "mesh"))
"""Where a rank stands that waits for another."""

_LOST = re.compile(
    "Connection closed by peer|Connection reset by peer|Broken pipe|Timed out waiting|NCCL"
)


class Ends:
    """Watches over one rank's training; a context around it.

    `hang_timeout` is in seconds: a rank that shows no sign of life (`llama/files/life.py`) for so
    long is ended with status 1, after the stacks of its threads went to standard error and to
    `hang-rank-N.txt` in `folder`. Raises `TrainingError` in place of what a collective raises when
    another rank has gone; `going_on` is what it says of how to: which command goes on."""

    def __init__(self, rank: int, folder: Path, hang_timeout: float, going_on: str) -> None:
        self.rank = rank
        self.status = 0
        """The exit status all ranks agreed on; 0 while none was asked to stop."""
        self._folder = folder
        self._hang_timeout = hang_timeout
        self._going_on = going_on
        self._wish = 0
        self._first: float | None = None
        self._step = 0
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name="ends", daemon=True)

    def __enter__(self) -> Ends:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            signal.signal(number, _to_the_thread)
            signal.siginterrupt(number, False)  # no system call of a library's is to fail for it
        life.show()
        self._thread.start()
        SAVES.set()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._close()
        lost = isinstance(error, RuntimeError) and _LOST.search(str(error))
        if lost:
            raise TrainingError(
                f"rank {self.rank} lost another rank after step {self._step} ({lost[0]}), which "
                f"says why if it could; {self._going_on} from the last checkpoint"
            ) from error

    def _close(self) -> None:
        SAVES.clear()
        self._closing = True
        os.write(self._writer, b"\0")
        self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reader)
        os.close(self._writer)

    @property
    def wish(self) -> int:
        """What this rank was asked for so far; 0: nothing. Of all ranks' the highest prevails."""
        return self._wish

    def stops(self, step: int, wish: int) -> bool:
        """Whether training is to stop here, after optimizer step `step`, by what the ranks agreed
        on. `status` then holds what to exit with."""
        life.show()
        self._step = step
        self.status = _WISHES[wish]
        return self.status != 0

    # The thread

    def _watch(self) -> None:
        while not self._closing:
            before = time.monotonic()
            ready, _, _ = select.select([self._reader], [], [], _TICK)
            for number in os.read(self._reader, 64) if ready else b"":
                if number in _SIGNALS:
                    self._received(number)
            if GONE.is_set():
                self._wish = max(self._wish, 1)
            late = time.monotonic() - before - _TICK
            if late > _TICK:  # stopped as a whole (Ctrl-Z, a scheduler's pause): that is no hang
                life.was_stopped(late)
            self._end_if_hung()

    def _received(self, number: int) -> None:
        self._wish = max(self._wish, _WISHES.index(128 + number))
        now = time.monotonic()
        if self._first is None:
            self._first = now
            name = signal.Signals(number).name
            self._say(f"{name}: stopping after this step; a second one stops at once")
        elif now - self._first > _SAME:
            os._exit(128 + number)

    def _end_if_hung(self) -> None:
        silent = life.silence()
        if silent < self._hang_timeout:
            return
        where, waits = _standing(self._thread.ident)
        if waits and silent < self._hang_timeout + _TO_SPEAK_FIRST:
            return
        try:
            with open(os.devnull, "w") as nowhere:  # its own folder may be what it hangs at
                faulthandler.dump_traceback_later(_TO_SPEAK_FIRST, exit=True, file=nowhere)
                self._report(silent, where, waits)
        finally:
            os._exit(1)

    def _report(self, silent: float, where: str, waits: bool) -> None:
        done = "has waited for another rank" if waits else "has done nothing"
        line = f"{done} for {silent:.0f} s, after step {self._step}, {where}"
        self._say(f"error: {line}; the stacks of its threads:")
        faulthandler.dump_traceback(file=2, all_threads=True)
        path = self._folder / f"hang-rank-{self.rank}.txt"
        with path.open("w") as file:
            file.write(f"rank {self.rank} {line}\n")
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # its reader may have ended with the launcher
            say(f"rank {self.rank}: {text}")


def _to_the_thread(_number: int, _frame: FrameType | None) -> None:
    """Nothing is left to do: the number of the signal has gone down the pipe."""


def _standing(own: int | None) -> tuple[str, bool]:
    """Where the main thread is, and whether any thread waits for another rank."""
    stacks = {
        ident: traceback.extract_stack(frame)
        for ident, frame in sys._current_frames().items()
        if ident != own
    }
    main = stacks[threading.main_thread().ident or 0][-1]
    waits = any(
        place in entry.filename
        for stack in stacks.values()
        for entry in stack
        for place in _COLLECTIVES
    )
    return f"in {main.name} ({main.filename}:{main.lineno})", waits
