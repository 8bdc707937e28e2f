"""Whether a process has ended, where nobody may be there to be told of its end."""

from __future__ import annotations

import psutil


def lives(pid: int) -> bool:
    """Whether it runs. One whose parent has ended stays as a zombie where the first process of all,
    as in some containers, takes in no orphans."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
