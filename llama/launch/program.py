"""How a process of ours ends: with the status that it earned."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, ParamSpec

P = ParamSpec("P")


def run_program(main: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> NoReturn:
    """Call `main` and end the process with the status it returns (None is 0), as at the end of a
    script: exceptions are reported, threads awaited, exit handlers called, streams flushed.

    Only Python's taking down of itself is left out, which a rank does not always survive: gloo's
    threads let go of the last collective's tensors when they come to it, need the interpreter for
    that, and one that asks for it then aborts the process with SIGABRT, after a run that went well
    (github.com/pytorch/pytorch/pull/179291, given up)."""
    status = _status_of(main, *args, **kwargs)
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()  # as multiprocessing ends its own processes
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # its reader has gone, or it was closed
            status = status or 1
    os._exit(status)


def _status_of(main: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> int:
    try:
        return main(*args, **kwargs) or 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    return 1
