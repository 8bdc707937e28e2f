"""`python -m tests.support.data_benchmark FILE CACHE`: what it costs to make FILE into packed rows,
or to find them in the folder CACHE; docs/benchmarks/data.md says what came of it. The tokenizer is
SmolLM2's, --seq_len 1024. One JSON object on a line."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sys
import threading
import time
from pathlib import Path

import psutil

from llama.data.batches import Epochs
from llama.data.prepare import Reading, prepare
from llama.tokenizer.templates import load_template
from tests.support.tokenizer_files import smollm2


def _mib(who: int) -> int:
    return resource.getrusage(who).ru_maxrss // 1024


def _user(who: int) -> float:
    return round(resource.getrusage(who).ru_utime, 1)


class Workers(threading.Thread):
    """Looks at the processes that this one starts: the most memory that any had. What the system
    counts of ended ones begins with the size of this one, of which each was a copy at first."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0

    def run(self) -> None:
        while True:
            for process in psutil.Process().children():
                with contextlib.suppress(OSError, psutil.Error):
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                        command = process.cmdline()
                        if "llama.data.store.worker" in command:
                            self.most = max(self.most, int(found[1]) >> 10)
            time.sleep(0.1)


def main(file: Path, cache: Path) -> None:
    tokenizer = smollm2()
    workers = Workers()
    workers.start()
    template = load_template(None, tokenizer)
    before, user, started = (
        _mib(resource.RUSAGE_SELF),
        _user(resource.RUSAGE_SELF),
        time.monotonic(),
    )
    data = prepare([file], template, tokenizer, Reading(1024, cache=cache))
    digest = data.packed.digest
    seconds = time.monotonic() - started
    after = _mib(resource.RUSAGE_SELF)
    next(Epochs(data.packed, 4, 1, shares=data.shares).windows(0))
    said = {
        "rows": data.report.rows,
        "tokens": data.report.tokens,
        "packed_rows": len(data.packed),
        "seconds": round(seconds, 2),
        "user_seconds": round(_user(resource.RUSAGE_SELF) - user, 1),
        "user_seconds_of_workers": _user(resource.RUSAGE_CHILDREN),
        "mib_before": before,
        "peak_mib": after,
        "peak_mib_of_a_worker": workers.most,
        "peak_mib_with_an_epoch": _mib(resource.RUSAGE_SELF),
        "file_mib": file.stat().st_size >> 20,
        "cache_mib": sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) >> 20,
        "digest": digest[:12],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
