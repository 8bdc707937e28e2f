"""The adapter of a running engine, whole, as a PEFT folder."""

from __future__ import annotations

from pathlib import Path

from llama.adapters import peft_format
from llama.adapters.peft_format import AdapterConfig
from llama.engine import Engine
from llama.files.atomic import write_folder
from llama.parallel.agreement import on_main


def save_adapter(engine: Engine, folder: Path, config: AdapterConfig) -> None:
    """Write `folder` as one: it appears whole or not at all. Every rank must call it. Raises
    `TrainingError` on all of them where it cannot be written."""
    state = engine.whole_adapter()
    on_main(engine.mesh, lambda: write_folder(folder, peft_format.contents(state, config)))
