"""`launcher/generate.py`: answer one prompt."""

from __future__ import annotations

import sys
import time

from llama.assembly.adapter import Opened, open_for_use
from llama.assembly.limits import check_prompt
from llama.assembly.model import ready_model
from llama.errors import raise_if
from llama.files.json_text import json_text
from llama.launch.streams import lost_output
from llama.model.decoding import Sampling, decode
from llama.settings import GenerateOptions, check_generate


def generate(options: GenerateOptions) -> int:
    """Print the answer as it is written; with `--json`, one object last. Raises `UserError` before
    any weights load."""
    raise_if(check_generate(options))
    opened = open_for_use(options)
    source, tokenizer = opened.source, opened.tokenizer
    prompt = _prompt_ids(options, opened)
    check_prompt(prompt, options.max_new_tokens, source.config, tokenizer)
    model = ready_model(source, opened.adapter, options.precision)
    started = time.perf_counter()
    sampling = Sampling(options.temperature, options.top_p, options.seed)
    ids: list[int] = []
    shown = ""
    for token in decode(model, prompt, options.max_new_tokens, tokenizer.stop_ids, sampling):
        ids.append(token)
        text = tokenizer.decode(ids)
        if not options.json and not text.endswith("\ufffd"):  # half a character is shown when whole
            print(text[len(shown) :], end="", flush=True)
            shown = text
            if lost_output():
                break  # nobody reads on
    seconds = time.perf_counter() - started
    text = tokenizer.decode(ids)
    if options.json:
        document = {
            "prompt": options.prompt,
            "text": text,
            "tokens": len(ids),
            "seconds": round(seconds, 3),
        }
        print(json_text(document))
    else:
        print(text[len(shown) :])
        rate = len(ids) / seconds
        print(f"{len(ids)} tokens in {seconds:.1f} s ({rate:.1f} per second)", file=sys.stderr)
    return 0


def _prompt_ids(options: GenerateOptions, opened: Opened) -> list[int]:
    tokenizer = opened.tokenizer
    if not options.raw:
        template = opened.template(options.template)
        return template.prompt([{"role": "user", "content": options.prompt}], tokenizer)
    ids = [*tokenizer.text_begins, *tokenizer.encode(options.prompt)]
    raise_if([] if ids else ["--prompt: this tokenizer adds no BOS: give some text with --raw"])
    return ids
