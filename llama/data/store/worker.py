"""`python -m llama.data.store.worker`: makes parts of data into examples, for the process that
started it and as long as that lives.

To its standard input come first a `Making`, then any number of `Part`; from its standard output
goes an `Answer` for each.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback

from llama.data.store.making import make
from llama.data.store.wire import Answer, receive, send
from llama.data.stream import UnsoundError

COLLECTED = 100_000
"""Objects after which Python looks for circles of them: a row makes hundreds, hardly a circle."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The one that started it ends it, by its pipe.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is no answer.
    gc.freeze()
    gc.set_threshold(COLLECTED)
    try:
        making = receive(sys.stdin.buffer)
        while True:
            part = receive(sys.stdin.buffer)
            try:
                answer = Answer(make(part, making))
            except UnsoundError as error:
                answer = Answer(unsound=str(error))
            except Exception:
                answer = Answer(failed=traceback.format_exc())
            send(answers, answer)
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main()
