"""`python -m tests.integration.recorded_on_cpu ...` is `launcher/train.py ...` as on a GPU: blocks
as one function each, and passes recorded; only that a recording takes its pass anew each time. At
the end standard error has what was recorded."""

from __future__ import annotations

import atexit
import sys
from typing import Any

import pytest
import torch

from llama.assembly import engine
from llama.commands.start import program
from llama.fused import captured, offload
from llama.fused.captured_inputs import Inputs
from tests.unit.fused.test_captured import _LaunchedLoss
from tests.unit.fused.test_captured_inputs import read_arguments
from tests.unit.fused.test_captured_memory import _AsRecorded, _Copies

made: set[str] = set()


class Training(_AsRecorded):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        made.add("training")


class Evaluation(_LaunchedLoss):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        made.add("evaluations")


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    patch.setattr(engine, "_is_fast", lambda *_: True)
    patch.setattr(captured, "Recorded", Training)
    patch.setattr(captured, "RecordedLoss", Evaluation)
    patch.setattr(offload, "PlainCopies", _Copies)
    patch.setattr(Inputs, "arguments", read_arguments)
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    atexit.register(lambda: print(f"recorded: {sorted(made)}", file=sys.stderr))
    program("train", "recorded_on_cpu")
