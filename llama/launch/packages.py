"""The packages whose versions are told, by what they do here.

A host on which torch is missing must be able to say so: nothing is imported.
"""

from __future__ import annotations

COMPUTING = ("torch", "deepspeed", "fairscale")
"""What ranks compute and talk to one another with."""
TOKENISING = ("numpy", "tokenizers", "sentencepiece", "tiktoken")
"""What makes tokens of rows: with another version ranks could train on other tokens."""
READING_WEIGHTS = ("safetensors", "gguf")
"""What reads the base model and writes the adapter."""
EVERY = (*COMPUTING, *TOKENISING, *READING_WEIGHTS)
