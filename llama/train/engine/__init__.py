"""DeepSpeed behind one door: start the processes, wrap the model, take an optimizer step.

Nothing outside this folder imports deepspeed.
"""

from llama.train.engine.processes import (
    bf16_supported,
    fp16_supported,
    launched_world_size,
    start_processes,
    stop_processes,
)

from llama.train.engine.engine import Engine, Step, dropout_seed  # isort: skip - sets DeepSpeed's variables first
from llama.train.engine.zero3 import ZeRO3Placement  # isort: skip

__all__ = [
    "Engine",
    "Step",
    "ZeRO3Placement",
    "bf16_supported",
    "dropout_seed",
    "fp16_supported",
    "launched_world_size",
    "start_processes",
    "stop_processes",
]
