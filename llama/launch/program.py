"""How a process of ours begins and ends: with streams that do not fail it, and with the status that
it earned. Imports nothing that takes time, so that Ctrl-C finds it at once."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, ParamSpec

from llama.launch.log import warnings_kept
from llama.launch.streams import lost_output, open_streams
from llama.notes import LOG, say_where_the_log_is

P = ParamSpec("P")

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


def run_program(main: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> NoReturn:
    """Call `main` and end the process with the status it returns (None is 0), as at the end of a
    script: exceptions are reported, threads awaited, exit handlers called, streams flushed. What
    could not be written to standard output makes a status of 0 a 1; Ctrl-C is 130.

    Only Python's taking down of itself is left out, which a rank does not always survive: gloo's
    threads let go of the last collective's tensors when they come to it, need the interpreter for
    that, and one that asks for it then aborts the process with SIGABRT, after a run that went well
    (github.com/pytorch/pytorch/pull/179291, given up)."""
    _speak_utf8()
    open_streams()
    _join_freed_memory()
    status = _status_of(main, *args, **kwargs)
    # As multiprocessing ends its own processes. Pools of threads are told to end before they are
    # waited for: torch.compile leaves one.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # something closed it
            stream.flush()
    if lost := lost_output():
        if lost.errno != errno.EPIPE:  # a reader that has gone, as of `... | head`, meant to
            print(f"error: standard output: {lost.strerror}: output is lost", file=sys.stderr)
        status = status or 1
    os._exit(status)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around the import of torch and what needs it: Ctrl-C ends the process there and then, with
    130. Python would raise inside whatever module is half imported, and some catch that and go on,
    or report it as an error of their own. Nothing is begun yet that would have to be ended.
    Warnings about other libraries, which importing them gives, are for the log."""
    before = signal.getsignal(signal.SIGINT)
    replaced = before is signal.default_int_handler  # else ignored, as after nohup
    if replaced:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        with warnings_kept():
            yield
    finally:
        if replaced:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Around a command of a single process: SIGTERM ends it as Ctrl-C does, so that what it has
    begun to write goes, but with 143. A second one ends it there and then. Python hears of the
    first between its own operations: a call that does not come back takes SIGKILL. Ranks have their
    own way (`llama.launch.stopping`): one that waits for another would not come to this."""
    before = signal.getsignal(signal.SIGTERM)
    replaced = before is signal.SIG_DFL  # else whoever started it has it ignored
    if replaced:
        signal.signal(signal.SIGTERM, _end_in_order)
    try:
        yield
    finally:
        if replaced:
            signal.signal(signal.SIGTERM, before)


def _end_in_order(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(TERMINATED)


def _speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode where names of files are taken for ASCII: in the C locale
    with that mode switched off. Every argument and file name with another letter would be no text
    there. The streams stay ASCII."""
    if sys.getfilesystemencoding() != "ascii" or "utf8" in sys._xoptions:
        return
    streams = {"PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING", "ascii"), "PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | streams)


def _join_freed_memory() -> None:
    """Have torch's allocator on CUDA grow its segments in place, so that what is freed joins into
    one piece again: in segments of fixed sizes a run under a cap of 20 GiB failed with 2.9 of them
    in pieces too small. torch reads it when it first allocates there. Who has set it knows
    better."""
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def _status_of(main: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> int:
    try:
        return main(*args, **kwargs) or 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        LOG.write("".join(traceback.format_exception(error)))
        say_where_the_log_is()
        sys.excepthook(type(error), error, error.__traceback__)
    return 1
