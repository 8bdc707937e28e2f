"""The commands by which others use what was written, and what they do not take."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llama.adapters import gguf_lora
from llama.commands.export.alone import product_of
from llama.commands.export.job import Job
from llama.launch.typed import typed
from llama.methods.about import TEMPLATE
from llama.settings.export_command import Format
from llama.weights.gguf import GGUFReader
from llama.weights.gguf_writer import FILE
from llama.weights.huggingface import HuggingFaceReader
from llama.weights.modelfile import NAME as MODELFILE

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` takes (vllm/config/lora.py of 0.33)."""
VLLM_RANK = 16
"""What it is where it is not given: an adapter of a higher rank is refused."""
_PROMPT = ("--prompt", "Name three fruits.")


@dataclass(frozen=True)
class NextSteps:
    """What to type next, and what to know before."""

    commands: list[str]
    warnings: list[str] = field(default_factory=list)


def next_steps(job: Job, format_: Format, folder: Path) -> NextSteps:
    """With what the job has written in `format_` to `folder`."""
    return _OF[format_](job, folder)


def _hf(job: Job, folder: Path) -> NextSteps:
    return NextSteps(
        [typed("generate", "--model", folder, *_PROMPT), shlex.join(["vllm", "serve", str(folder)])]
    )


def _meta(job: Job, folder: Path) -> NextSteps:
    return NextSteps([typed("generate", "--model", folder, *_PROMPT)])


def _gguf(job: Job, folder: Path) -> NextSteps:
    return NextSteps(
        [
            shlex.join(["llama-server", "-m", str(folder / FILE)]),
            shlex.join(["ollama", "create", "NAME", "-f", str(folder / MODELFILE)]),
        ]
    )


def _peft(job: Job, folder: Path) -> NextSteps:
    """vLLM takes a chat template from the base alone, unless it is told of another."""
    refusal = _not_of_vllm(job)
    if refusal is not None:
        return NextSteps([_merging(job)], [f"vLLM does not serve {refusal}: merge it instead"])
    base, before = job.opened.source.name, []
    if not isinstance(job.opened.source.reader, HuggingFaceReader):
        base, before = "BASE", [_base(job, "hf")]
    words = ["vllm", "serve", base, "--enable-lora"]
    if (rank := _rank(job)) > VLLM_RANK:
        words += ["--max-lora-rank", str(next(most for most in VLLM_RANKS if most >= rank))]
    words += ["--lora-modules", f"NAME={folder}"]
    if job.template is not None:
        words += ["--chat-template", str(folder / TEMPLATE)]
    ways = {(options.rank, options.alpha) for options in job.layers.values()}
    mixed = "its layers differ in rank or alpha, which vLLM 0.33 reads: an earlier one may not"
    return NextSteps([*before, shlex.join(words)], [mixed] if len(ways) > 1 else [])


def _gguf_lora(job: Job, folder: Path) -> NextSteps:
    """llama.cpp too takes the template of the base, unless it is told of another."""
    source = job.opened.source
    base, before = f"BASE/{FILE}", [_base(job, "gguf")]
    if isinstance(source.reader, GGUFReader):
        base, before = str(source.files[0]), []
    words = ["llama-server", "-m", base, "--lora", str(folder / gguf_lora.FILE)]
    if job.template is not None:
        words += ["--jinja", "--chat-template-file", str(folder / TEMPLATE)]
    return NextSteps([*before, shlex.join(words)])


_OF: dict[Format, Callable[[Job, Path], NextSteps]] = {
    "hf": _hf,
    "meta": _meta,
    "gguf": _gguf,
    "peft": _peft,
    "gguf-lora": _gguf_lora,
}


def _not_of_vllm(job: Job) -> str | None:
    """What of the adapter vLLM refuses (`PEFTHelper` in its vllm/lora/peft_helper.py)."""
    for layer, options in job.layers.items():
        if product_of(job, layer) is None:
            return f"adapters of kind {options.kind}"
    if _rank(job) > VLLM_RANKS[-1]:
        return f"adapters of rank {_rank(job)}, but up to {VLLM_RANKS[-1]}"
    return None


def _rank(job: Job) -> int:
    return max(options.rank for options in job.layers.values())


def _base(job: Job, format_: Format) -> str:
    """Writes the base as the server reads it."""
    model = ("--model", job.opened.source.name)
    return typed("export", *model, "--format", format_, "--output_dir", "BASE")


def _merging(job: Job) -> str:
    options = job.options
    given = {
        "--adapter": options.adapter,
        "--model": options.model,
        "--tokenizer": options.tokenizer,
        "--template": options.template,
    }
    words = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
    return typed("export", *words, "--format", "hf", "--output_dir", "MERGED")
