"""`python -m tests.support.served_text RUN FOLDER`: a run's adapter, exported, answers as
`generate` does with it beside its base.

RUN's adapter is exported in F16 to GGUF and to Hugging Face's folder, into FOLDER. llama.cpp and
transformers then answer the first ten bundled held-out prompts, laid out by the adapter's template,
greedily, and so does `generate --adapter RUN --precision float32`. One JSON object a prompt: how
many tokens `generate` wrote, and how many of them, from the first on, the others wrote too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from llama.assembly.adapter import Opened, open_for_use
from llama.assembly.model import ready_model
from llama.commands.export.command import export
from llama.data.rows import bundled, read_rows
from llama.model.decoding import Sampling, decode
from llama.settings import ExportOptions
from llama.tokenizer.base import Message
from llama.tokenizer.chat import joined_content
from tests.support.llama_cpp import completion, serving

PROMPTS, TOKENS = 10, 64


def prompts(opened: Opened) -> list[list[int]]:
    template, found = opened.template(None), []
    for row in read_rows([bundled("heldout_40")]).rows[:PROMPTS]:
        turn: Message = {"role": "user", "content": joined_content(row.messages[0])}
        found.append(template.prompt([turn], opened.tokenizer))
    return found


def ours(opened: Opened, ids: list[list[int]]) -> list[list[int]]:
    model = ready_model(opened.source, opened.adapter, "float32")
    stops = opened.tokenizer.stop_ids
    return [list(decode(model, of_prompt, TOKENS, stops, Sampling())) for of_prompt in ids]


def of_llama_cpp(file: Path, ids: list[list[int]]) -> list[list[int]]:
    with serving(file) as address:
        return [completion(address, of_prompt, TOKENS) for of_prompt in ids]


@torch.no_grad()
def of_transformers(folder: Path, ids: list[list[int]], stops: set[int]) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": sorted(stops)}
    return [
        model.generate(torch.tensor([of_prompt]), **options)[0].tolist()[len(of_prompt) :]
        for of_prompt in ids
    ]


def alike(found: list[int], expected: list[int]) -> int:
    """Tokens of `expected` until the first that was not found."""
    pairs = zip(expected, found, strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
    return min(len(expected), len(found)) if same is None else same


def main(run: Path, folder: Path) -> None:
    for format_ in ("gguf", "hf"):
        options: dict[str, Any] = {"format": format_, "output_dir": folder / format_}
        assert export(ExportOptions(adapter=run, dtype="float16", **options)) == 0
    opened = open_for_use(ExportOptions(adapter=run))
    ids = prompts(opened)
    expected = ours(opened, ids)
    theirs = {
        "llama.cpp": of_llama_cpp(folder / "gguf" / "model.gguf", ids),
        "transformers": of_transformers(folder / "hf", ids, set(opened.tokenizer.stop_ids)),
    }
    for number, written in enumerate(expected):
        same = {name: alike(found[number], written) for name, found in theirs.items()}
        text = opened.tokenizer.decode(written)
        print(json.dumps({"generate": len(written), **same, "text": text}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
