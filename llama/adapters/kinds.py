"""The kinds of adapter, by the name that `--lora.kind` takes."""

from __future__ import annotations

from llama.adapters.adapter import Adapter
from llama.adapters.dora import DoRAAdapter
from llama.adapters.lora import LoRAAdapter
from llama.adapters.pissa import PissaAdapter
from llama.settings import LoRAOptions
from llama.settings.starts import UNIFORM

KINDS: dict[str, type[Adapter]] = {"lora": LoRAAdapter, "dora": DoRAAdapter}

FROM_BASE: dict[str, type[Adapter]] = {"lora": PissaAdapter}
"""Those that `--lora.start pissa` makes of them."""


def kind_of(options: LoRAOptions) -> type[Adapter]:
    """What `options` ask for; `check_lora` has found that it is there."""
    return (KINDS if options.start == UNIFORM else FROM_BASE)[options.kind]
