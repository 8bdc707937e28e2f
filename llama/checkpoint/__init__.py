"""Checkpoints: all that a run needs to go on as if it had never stopped, in a few files and a list.

    OUT/checkpoints/step-N/
        adapter/                a PEFT folder; its float32 tensors are the optimizer's masters
        optimizer.safetensors   the two moments of each, float32, by parameter name
        trainer.json            counters, position in the data, topology, what the run is made of
        manifest.json           size and SHA-256 of each of the others, and of itself

Tensors are whole, whatever the tensor-parallel degree and the ZeRO stage, so any topology can load
them. Where they are too large for one rank, each rank writes its own in place of the first two:

        rank-K.safetensors      masters and moments of the elements that rank K steps

and `trainer.json` says which those are, so that any topology can read what it needs. Nothing is
pickled.
"""

from llama.checkpoint.content import Checkpoint, RunState
from llama.checkpoint.reading import read
from llama.checkpoint.saving import Saver, saver_of
from llama.checkpoint.store import Store
from llama.checkpoint.writer import Writer

__all__ = ["Checkpoint", "RunState", "Saver", "Store", "Writer", "read", "saver_of"]
