"""The two hosts themselves: nothing of them outlives what made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.living import lives
from tests.support.model_files import ROOT

_MAKER = """
import sys, time
from pathlib import Path
from tests.multinode.hosts import two_hosts
with two_hosts(Path(sys.argv[1])) as hosts:
    print(*(host.pid for host in hosts.hosts), flush=True)
    time.sleep(60)
"""


def test_hosts_end_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", _MAKER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert maker.stdout is not None
        pids = [int(pid) for pid in maker.stdout.readline().split()]
    finally:
        os.kill(maker.pid, signal.SIGKILL)
        maker.wait()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(map(lives, pids)):
        assert time.monotonic() < deadline, "a host lives on"
        time.sleep(0.1)
