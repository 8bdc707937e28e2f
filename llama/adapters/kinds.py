"""The kinds of adapter, by the name that `--lora.kind` takes."""

from __future__ import annotations

from llama.adapters.adapter import Adapter
from llama.adapters.lora import LoRAAdapter

KINDS: dict[str, type[Adapter]] = {"lora": LoRAAdapter}
