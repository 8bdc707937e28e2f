"""The adapter of a running engine, whole, as a PEFT folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llama.lora import peft_format
from llama.lora.peft_format import AdapterConfig
from llama.train.engine import Engine


def save_adapter(engine: Engine, folder: Path, config: AdapterConfig) -> None:
    """Write `folder` as one: it appears whole or not at all. Every rank must call it."""
    state = engine.whole_adapter()
    if engine.mesh.is_main:
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        peft_format.save(partial, state, config)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
