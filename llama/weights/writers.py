"""The formats that are written."""

from __future__ import annotations

from llama.weights.huggingface_writer import HuggingFaceWriter
from llama.weights.writing import FileWriter

WRITERS: dict[str, type[FileWriter]] = {"huggingface": HuggingFaceWriter}
