"""`launcher/evaluate.py`: the loss of a model, with or without an adapter, on a data file."""

from __future__ import annotations

import math
import sys

from llama.assembly.adapter import open_for_use
from llama.assembly.limits import check_examples
from llama.assembly.model import default_device, ready_model
from llama.assembly.use import summed_loss
from llama.data.batches import eval_batches
from llama.data.prepare import Reading
from llama.errors import raise_if
from llama.files.json_text import json_text
from llama.objectives.kinds import SFT
from llama.settings import EvaluateOptions, check_evaluate


def perplexity(loss: float) -> float:
    """`e ** loss`; infinite beyond what a float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def evaluate(options: EvaluateOptions) -> int:
    """Print the mean loss over supervised tokens and its perplexity. Raises `UserError` before any
    weights load."""
    raise_if(check_evaluate(options))
    device = default_device()
    opened = open_for_use(options)
    source, tokenizer = opened.source, opened.tokenizer
    template = opened.template(options.template)
    reading = Reading(
        options.seq_len, options.pack, options.overlong, options.columns, options.data_cache
    )
    data = SFT.prepare(options.data, template, tokenizer, reading)
    check_examples(data.report.source, data.examples, source.config, tokenizer)
    print(data.report.text(), file=sys.stderr)
    model = ready_model(source, opened.adapter, options.precision)
    total, supervised = summed_loss(model, eval_batches(data.packed, options.micro_batch), device)
    loss = total / supervised
    document = {"loss": loss, "perplexity": perplexity(loss), "supervised_tokens": supervised}
    if options.json:
        print(json_text(document))
    else:
        print(
            f"loss {loss:.4f}, perplexity {document['perplexity']:.3f}, "
            f"over {supervised:,} supervised tokens"
        )
    return 0
