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

from llama.train.engine.engine import Engine, Step  # isort: skip - sets DeepSpeed's variables first

__all__ = [
    "Engine",
    "Step",
    "bf16_supported",
    "fp16_supported",
    "launched_world_size",
    "start_processes",
    "stop_processes",
]
