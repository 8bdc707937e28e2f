"""The objectives by name."""

from __future__ import annotations

from llama.objectives.objective import Objective
from llama.objectives.sft import SupervisedFineTuning

KINDS: dict[str, Objective] = {"sft": SupervisedFineTuning()}
SFT = KINDS["sft"]
"""What every command trains and evaluates."""
