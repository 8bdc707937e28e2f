"""Ports for runs that start beside others."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

FIRST, EACH, WORKERS = 10_000, 2_000, 4
"""Below those that the kernel gives to who asks for any, and that runs choose by themselves: no
listener of others takes one before the run has begun. Each worker of pytest's has its own."""


_given: set[int] = set()


def free_port() -> int:
    """One that nothing listens on, and that this process was not given before."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % WORKERS
    first = FIRST + EACH * worker
    while True:
        port = random.SystemRandom().randrange(first, first + EACH)
        if port in _given:
            continue
        with socket.socket() as server, suppress(OSError):
            server.bind(("", port))
            _given.add(port)
            return port
