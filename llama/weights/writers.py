"""The formats that are written."""

from __future__ import annotations

from llama.weights.gguf_writer import GGUFFileWriter
from llama.weights.huggingface_writer import HuggingFaceWriter
from llama.weights.meta_writer import MetaWriter
from llama.weights.writing import FileWriter

WRITERS: dict[str, type[FileWriter]] = {
    "huggingface": HuggingFaceWriter,
    "meta": MetaWriter,
    "gguf": GGUFFileWriter,
}
