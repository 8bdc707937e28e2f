"""Sub-runs of the scripts that time a GPU machine: started in the project's root, of its code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llama.commands.benchmark import sub_run

ROOT = Path(__file__).parents[2]
DEFAULTS = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""Of a sub-run's environment, unless set already: NVLink multicast is a matter of the host's fabric
manager, and where that is not set up it hangs or fails."""


@dataclass(kw_only=True)
class SubRun(sub_run.SubRun):
    """Some processes of this checkout's."""

    def where(self) -> tuple[Path | None, dict[str, str]]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return ROOT, {**DEFAULTS, **os.environ, **self.environment, "PYTHONPATH": path}


def torchrun(count: int) -> list[str]:
    """How that many processes are started, after the interpreter, on a port of torchrun's choice;
    by its module: packages unpacked into a folder have no command on the path."""
    start = ["-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"]
    return [*start, "--nproc_per_node", str(count)]
