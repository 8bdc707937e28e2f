"""What is said of an export that is done."""

from __future__ import annotations

from typing import Any

from llama.adapters import gguf_lora
from llama.commands.export.job import Job
from llama.launch.typed import typed
from llama.weights.gguf_writer import FILE, MODELFILE


def closing(job: Job, document: dict[str, Any]) -> list[str]:
    """What was written, how near it is to what it was made of, and what to do with it."""
    source, folder = job.opened.source, job.folder
    of_what = (
        source.name if job.opened.adapter is None else f"{job.opened.adapter} on {source.name}"
    )
    lines = [f"{of_what}: {document['format']}, {document['dtype']}, {document['bytes']:,} bytes"]
    if document["verified"]:
        lines.append(
            f"read back: a logit differs by {document['largest_difference']:.3g} at most, of "
            f"logits up to {document['largest_logit']:.3g}; all of them by "
            f"{document['difference_share']:.2g} of what they spread by"
        )
    else:
        lines.append("not read back: --verify false")
    lines += [f"written: {folder}", "next:"]
    prompt = ("--prompt", "Name three fruits.")
    of_format = {
        "hf": [typed("generate", "--model", folder, *prompt), f"vllm serve {folder}"],
        "meta": [typed("generate", "--model", folder, *prompt)],
        "gguf": [f"llama-server -m {folder / FILE}", f"ollama create NAME -f {folder / MODELFILE}"],
        "peft": [f"vllm serve BASE --enable-lora --lora-modules NAME={folder}"],
        "gguf-lora": [f"llama-server -m BASE.gguf --lora {folder / gguf_lora.FILE}"],
    }
    return lines + [f"  {line}" for line in of_format[job.format]]
