"""What is to be exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llama.assembly.adapter import Opened
from llama.assembly.model import read_adapter
from llama.settings import ExportOptions, LoRAOptions
from llama.settings.export_command import Format

Layers = Mapping[str, LoRAOptions]
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Job:
    """A model and its adapter, opened and found to belong together."""

    options: ExportOptions
    opened: Opened
    layers: Layers
    state: State
    """The adapter's, as `read_adapter` gives them; empty without one."""
    template: str | None
    """The chat template, in Jinja; None for the model's own."""

    @property
    def format(self) -> Format:
        """What is to be written."""
        assert self.options.format is not None, "nothing is to be written"
        return self.options.format

    @property
    def folder(self) -> Path:
        """Where to."""
        assert self.options.output_dir is not None, "nothing is to be written"
        return self.options.output_dir

    @classmethod
    def of(cls, options: ExportOptions, opened: Opened) -> Job:
        layers: Layers = {}
        state: State = {}
        if opened.adapter is not None:
            layers, state = read_adapter(opened.adapter, opened.source.config)
        template = None
        if options.template is not None or opened.recorded is not None:
            template = opened.template(options.template).jinja(opened.tokenizer)
        return cls(options, opened, layers, state, template)
