"""DeepSpeed behind one door: join its processes, wrap the model, take an optimizer step.

Nothing outside this folder imports deepspeed.
"""

from llama.engine.backend import bf16_supported, fp16_supported, start_processes

from llama.engine.engine import Engine, Step, dropout_seed  # isort: skip - sets DeepSpeed's variables first
from llama.engine.parts import Piece  # isort: skip
from llama.engine.rates import with_rates  # isort: skip
from llama.engine.zero3 import ZeRO3Placement, gathered  # isort: skip

__all__ = [
    "Engine",
    "Piece",
    "Step",
    "ZeRO3Placement",
    "bf16_supported",
    "dropout_seed",
    "fp16_supported",
    "gathered",
    "start_processes",
    "with_rates",
]
