"""In place of `srun` and `scontrol`: tasks on this machine, with what SLURM tells each, and faults
on demand. `standin.py srun|scontrol WORDS...`, in a folder whose `said.jsonl` it adds to.

Of an srun only what docs/clusters/slurm.sh needs is here: the number of tasks, their variables, and
the highest exit status of all of them. STANDIN_FAULT is what befalls the training step of the first
start: `kill`, one task once there is a checkpoint; `terminate`, all of them then; or a status, with
which every start ends at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SAID = Path("said.jsonl")


def srun(words: list[str]) -> int:
    options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    command = words[next(i for i, word in enumerate(words) if not word.startswith("--")) :]
    tasks = int(options.get("ntasks", os.environ["SLURM_NTASKS"]))
    trains = "launcher/train.py" in command
    if "launcher/doctor.py" in command:  # tries a port, which is not to be another test's
        command += ["--master_port", os.environ["DOCTORS_PORT"]]
    fault = os.environ.get("STANDIN_FAULT", "") if trains else ""
    if fault.isdigit():
        return int(fault)
    running = [subprocess.Popen(command, env=os.environ | of_task(n, tasks)) for n in range(tasks)]
    if fault and steps().count("train") == 1:
        folder = Path(command[command.index("--output_dir") + 1])
        while not list(folder.glob("checkpoints/step-*")):
            if any(task.poll() is not None for task in running):
                break
            time.sleep(0.01)
        for task in running if fault == "terminate" else running[1:]:
            task.send_signal(signal.SIGTERM if fault == "terminate" else signal.SIGKILL)
    return max(128 - status if (status := task.wait()) < 0 else status for task in running)


def of_task(number: int, tasks: int) -> dict[str, str]:
    return {
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_ID": str(len(steps())),
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "node1",
    }


def steps() -> list[str]:
    """The commands that were started so far, by name."""
    return [Path(w).stem for line in said() for w in line if w.startswith("launcher/")]


def said() -> list[list[str]]:
    """The words of every call so far."""
    return [json.loads(line) for line in SAID.read_text().splitlines()]


if __name__ == "__main__":
    with SAID.open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    sys.exit(srun(sys.argv[2:]) if sys.argv[1] == "srun" else 0)
