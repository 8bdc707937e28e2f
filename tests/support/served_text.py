"""`python -m tests.support.served_text RUN FOLDER`: a run's adapter, exported, answers as
`generate` does.

RUN's adapter is exported in F16 to GGUF and to Hugging Face's folder, into FOLDER. `generate
--model FOLDER/hf`, llama.cpp and transformers then answer the first ten bundled held-out prompts,
laid out by the adapter's template, greedily and in float32; and so does `generate --adapter RUN`,
whose base is not rounded to F16. One JSON object a prompt: how many tokens `generate --model`
wrote, and how many of them, from the first on, the others wrote too. Where `generate --adapter`
wrote another, `gap` is how far apart its two logits were, and `spread` the standard deviation of
them all: a tie that the rounding of the weights decides is a gap of little against it. The last
line counts the prompts whose whole text was the same."""

from __future__ import annotations

import json
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from llama.assembly.adapter import Opened, open_for_use
from llama.assembly.model import ready_model
from llama.commands.export.command import export
from llama.data.rows import bundled, read_rows
from llama.model.decoding import Sampling, decode
from llama.model.documents import Documents
from llama.model.transformer import Transformer
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


def ours(model: Transformer, ids: list[list[int]], stops: frozenset[int]) -> list[list[int]]:
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


def before_stop(ids: list[int], stops: frozenset[int]) -> list[int]:
    """The answer alone: others write the token that ended it too."""
    return list(takewhile(lambda token: token not in stops, ids))


def alike(found: list[int], expected: list[int]) -> int:
    """Tokens of `expected` until the first that was not found."""
    pairs = zip(expected, found, strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
    return min(len(expected), len(found)) if same is None else same


@torch.no_grad()
def parted(model: Transformer, ids: list[int], written: int, instead: int) -> dict[str, float]:
    """How much more likely `written` was to the model, after `ids`, than `instead`, in logits."""
    logits = model(torch.tensor(ids), torch.arange(len(ids)), Documents((0, len(ids))))[-1]
    gap = logits[written] - logits[instead]
    return {"gap": round(gap.item(), 4), "spread": round(logits.std().item(), 2)}


def main(run: Path, folder: Path) -> None:
    for format_ in ("gguf", "hf"):
        options: dict[str, Any] = {"format": format_, "output_dir": folder / format_}
        assert export(ExportOptions(adapter=run, dtype="float16", **options)) == 0
    opened = open_for_use(ExportOptions(adapter=run))
    ids, stops = prompts(opened), opened.tokenizer.stop_ids
    beside = ready_model(opened.source, opened.adapter, "float32")
    merged = open_for_use(ExportOptions(model=str(folder / "hf"))).source
    expected = ours(ready_model(merged, None, "float32"), ids, stops)
    others = {
        "llama.cpp": of_llama_cpp(folder / "gguf" / "model.gguf", ids),
        "transformers": of_transformers(folder / "hf", ids, set(stops)),
        "generate --adapter": ours(beside, ids, stops),
    }
    others = {
        name: [before_stop(answer, stops) for answer in found] for name, found in others.items()
    }
    whole = dict.fromkeys(others, 0)
    for number, written in enumerate(expected):
        line: dict[str, Any] = {"generate --model": len(written)}
        for name, found in others.items():
            line[name] = alike(found[number], written)
            whole[name] += found[number] == written
        own, at = others["generate --adapter"][number], line["generate --adapter"]
        if own != written:
            line |= parted(beside, ids[number] + own[:at], own[at], written[at])
        print(json.dumps({**line, "text": opened.tokenizer.decode(written)}))
    print(json.dumps({"prompts": len(expected), "the same whole": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
