"""The commands by which others serve what was written, and what they do not serve."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

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
class Serving:
    """What to type next."""

    commands: list[str]
    warnings: list[str] = field(default_factory=list)


def serving(job: Job) -> Serving:
    """Of what the job has written."""
    return _OF[job.options.format](job)


def _hf(job: Job) -> Serving:
    folder = job.options.output_dir
    return Serving(
        [typed("generate", "--model", folder, *_PROMPT), shlex.join(["vllm", "serve", str(folder)])]
    )


def _meta(job: Job) -> Serving:
    return Serving([typed("generate", "--model", job.options.output_dir, *_PROMPT)])


def _gguf(job: Job) -> Serving:
    folder = job.options.output_dir
    return Serving(
        [
            shlex.join(["llama-server", "-m", str(folder / FILE)]),
            shlex.join(["ollama", "create", "NAME", "-f", str(folder / MODELFILE)]),
        ]
    )


def _peft(job: Job) -> Serving:
    """vLLM takes a chat template from the base alone, unless it is told of another."""
    refusal = _not_of_vllm(job)
    if refusal is not None:
        return Serving([_merging(job)], [f"vLLM does not serve {refusal}: merge it instead"])
    folder = job.options.output_dir
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
    return Serving([*before, shlex.join(words)], [mixed] if len(ways) > 1 else [])


def _gguf_lora(job: Job) -> Serving:
    """llama.cpp too takes the template of the base, unless it is told of another."""
    folder, source = job.options.output_dir, job.opened.source
    base, before = f"BASE/{FILE}", [_base(job, "gguf")]
    if isinstance(source.reader, GGUFReader):
        base, before = str(source.files[0]), []
    words = ["llama-server", "-m", base, "--lora", str(folder / gguf_lora.FILE)]
    if job.template is not None:
        words += ["--jinja", "--chat-template-file", str(folder / TEMPLATE)]
    return Serving([*before, shlex.join(words)])


_OF: dict[Format, Callable[[Job], Serving]] = {
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
    model = ("--model", options.model) if options.model is not None else ()
    adapter = ("--adapter", str(options.adapter))
    return typed("export", *adapter, *model, "--format", "hf", "--output_dir", "MERGED")
