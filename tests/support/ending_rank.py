"""A rank that trains nothing: what `llama.train` does about its end, in a process of its own.

    python ending_rank.py FOLDER HANG_TIMEOUT [STEP_THAT_HANGS]

It writes `FOLDER/steps` as it goes and `FOLDER/saved` when it was asked to stop.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from llama.launch.parent import follow_launcher
from llama.launch.stopping import Ends


def main(folder: Path, hang_timeout: float, hangs_at: int | None) -> int:
    follow_launcher()
    with Ends(0, folder, hang_timeout, "the same command goes on") as ends:
        for step in range(1, 1200):
            with (folder / "steps").open("a") as file:
                file.write(f"{step}\n")
            time.sleep(0.05 if step != hangs_at else 600)
            if ends.stops(step, ends.wish):
                with (folder / "saved").open("a") as file:
                    file.write(f"{step}\n")
                time.sleep(1.5)  # a save takes its time
                break
    return ends.status


if __name__ == "__main__":
    hangs_at = int(sys.argv[3]) if len(sys.argv) > 3 else None
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), hangs_at))
