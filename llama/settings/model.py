"""Settings that several commands have: which model, with which adapter, and how rows are read. The
docstring under a field is its `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llama.settings.options.marks import BY_CONTENT, BY_VALUE


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How text becomes tokens, for every command."""

    tokenizer: Path | None = field(default=None, metadata=BY_CONTENT)
    """A tokenizer's file or folder; none means the one found beside the model."""
    template: str | None = field(default=None, metadata=BY_VALUE)
    """How a prompt is laid out: alpaca, llama2, llama3, chatml, or a Jinja file; none means the
    model's own, else alpaca."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(TextOptions):
    """Which model, for every command that takes no adapter."""

    model: str = field(default="smollm2-135m", metadata=BY_CONTENT)
    """A folder or file (Meta, Hugging Face or GGUF), a hub name, the bundled smollm2-135m, or
    random:NAME, the shape of NAME (as llama-7b) with random weights."""


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(TextOptions):
    """Which model, for every command that uses one with an adapter or without."""

    model: str | None = None
    """A folder or file (Meta, Hugging Face or GGUF), a hub name, the bundled smollm2-135m, or
    random:NAME; none means the base of --adapter, or without one smollm2-135m."""
    adapter: Path | None = None
    """An adapter's folder (PEFT's), a run's, whose adapter is then taken, or a checkpoint's; none
    means the model alone. Its own base, tokenizer and template are used where --model, --tokenizer
    and --template are not given."""
    force: bool = False
    """Whether an adapter is used on another base or tokenizer than its own, with a warning, where
    that is else refused."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How rows are read."""

    columns: tuple[tuple[str, str], ...] = field(default=(), metadata=BY_VALUE)
    """Columns of the rows that go by other names, as instruction=question,output=answer; of a
    list's turns as messages.role=speaker. Of the held-out rows too."""
    overlong: Literal["drop", "cut", "split"] = "drop"
    """What becomes of a row longer than --seq_len: drop leaves it out; cut keeps its beginning, and
    its answer then has no end token to learn; split cuts a plain text into pieces. Each is
    counted."""
    data_cache: Path | None = None
    """Folder where tokens of large data are kept for the next start; none means
    ~/.cache/llama-lora/data, or what XDG_CACHE_HOME says."""


@dataclass(frozen=True, kw_only=True)
class RowOptions(ReadingOptions, ModelOptions):
    """Which model, and how rows are read and made into its tokens."""
