"""Another trainer's step, timed as ours is: a process of its own, started by `suite.py`.

    python -m llama.commands.benchmark.peer --kind liger --folder FOLDER --batch 2 --seq_len 4096

What is timed is the loop that its users run, without what a Trainer does around a step: a batch
from the host, forward, backward, clipping at 1.0, torch's fused AdamW. The last line of standard
output is the result as one JSON object. The trainers' packages are imported here and nowhere else.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from llama.files.json_text import json_text

RANK, ALPHA, RATE, CLIPPING = 16, 32, 1e-3, 1.0
IGNORE = -100
PACKAGES = ("torch", "triton", "transformers", "peft", "liger_kernel", "unsloth", "bitsandbytes")
NEEDS = {
    "peft": ("transformers", "peft"),
    "liger": ("transformers", "peft", "liger_kernel"),
    "unsloth": ("unsloth",),
}
"""Kind of peer to the packages that it takes. `peft`: transformers + PEFT; `liger`: the same with
liger's kernels; both with adapters in bfloat16, their fastest form."""
Row = list[tuple[list[int], list[int]]]
"""Documents that share a packed row: token ids, and labels."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time another trainer's step.")
    parser.add_argument("--kind", choices=(*NEEDS, "weights"), required=True)
    parser.add_argument("--folder", type=Path, required=True, help="with config.json, and weights")
    parser.add_argument("--data", type=Path, help="packed rows as JSON; none: random tokens")
    parser.add_argument("--packing", action="store_true", help="train on the rows as packed")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq_len", type=int, default=1024)
    parser.add_argument("--targets", default="q_proj,v_proj")
    parser.add_argument("--checkpointing", choices=("none", "block"), default="none")
    parser.add_argument("--four_bits", action="store_true")
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    return parser.parse_args()


# Models


def transformers_model(given: argparse.Namespace, liger: bool) -> Any:
    """transformers + PEFT with random weights, drawn where they are trained."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    if liger:
        kernels = {"rope": True, "rms_norm": True, "swiglu": True}
        patch = importlib.import_module("liger_kernel.transformers").apply_liger_kernel_to_llama
        patch(fused_linear_cross_entropy=True, **kernels)
    config = AutoConfig.from_pretrained(given.folder)
    config.use_cache = False
    with torch.device(device()):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    adapters = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=given.targets.split(","),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, adapters, autocast_adapter_dtype=False)
    if given.checkpointing == "block":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def unsloth_model(given: argparse.Namespace) -> Any:
    """Recomputed, with its own placement: the inputs of blocks in the host's memory."""
    fast = importlib.import_module("unsloth").FastLanguageModel  # before torch: it patches others
    import torch

    recomputes = "unsloth" if given.checkpointing == "block" else False
    model, _ = fast.from_pretrained(
        str(given.folder),
        max_seq_length=given.seq_len * (given.batch if given.packing else 1),
        dtype=torch.bfloat16,
        load_in_4bit=given.four_bits,
        use_gradient_checkpointing=recomputes,
    )
    model = fast.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=given.targets.split(","),
        bias="none",
        use_gradient_checkpointing=recomputes,
        random_state=0,
    )
    fast.for_training(model)
    return model


def write_weights(folder: Path) -> None:
    """Random weights and a tokenizer of words beside the config.json of `folder`, for those that
    start from a folder alone."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    with torch.device(device()):
        config = AutoConfig.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    words = {word: number for number, word in enumerate([*special, *map(str, range(500))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# Batches: what a model is called with, and how many tokens of it are real

Inputs = tuple[dict[str, Any], int]


def batches_of(given: argparse.Namespace, vocabulary: int) -> list[Inputs]:
    if given.data is None:
        import torch

        generator = torch.Generator().manual_seed(0)
        shape = given.batch, given.seq_len
        number = given.warmup + given.steps
        drawn = [torch.randint(5, vocabulary, shape, generator=generator) for _ in range(number)]
        return [({"input_ids": ids, "labels": ids}, ids.numel()) for ids in drawn]
    rows: list[Row] = json.loads(given.data.read_text())
    if given.packing:
        return [packed(rows[i : i + given.batch]) for i in range(0, len(rows), given.batch)]
    return padded_batches(rows, given.batch * given.seq_len)


def packed(rows: list[Row]) -> Inputs:
    """Documents end to end, told apart by their lengths, as Unsloth takes them."""
    import torch

    documents = [document for row in rows for document in row]
    lengths = [len(ids) for ids, _ in documents]
    inputs = {
        "input_ids": [token for ids, _ in documents for token in ids],
        # what follows a document's last token is no continuation of it
        "labels": [label for _, labels in documents for label in [IGNORE, *labels[1:]]],
        "position_ids": [place for length in lengths for place in range(length)],
    }
    tensors = {name: torch.tensor([values]) for name, values in inputs.items()}
    tensors["packed_seq_lengths"] = torch.tensor(lengths, dtype=torch.int32)
    return tensors, sum(lengths)


def padded_batches(rows: list[Row], room: int) -> list[Inputs]:
    """Documents of like length together, padded to at most `room` tokens a batch, in an order by
    chance: the least padding that there can be."""
    import torch

    documents = sorted((d for row in rows for d in row), key=lambda d: len(d[0]), reverse=True)
    groups: list[Row] = []
    while documents:
        count = max(1, room // len(documents[0][0]))
        groups.append(documents[:count])
        documents = documents[count:]
    random.Random(0).shuffle(groups)
    found = []
    for group in groups:
        longest = max(len(ids) for ids, _ in group)
        free = [longest - len(ids) for ids, _ in group]
        inputs = {
            "input_ids": [ids + [0] * n for (ids, _), n in zip(group, free, strict=True)],
            "labels": [labels + [IGNORE] * n for (_, labels), n in zip(group, free, strict=True)],
        }
        if any(free):
            inputs["attention_mask"] = [[1] * (longest - n) + [0] * n for n in free]
        tensors = {name: torch.tensor(values) for name, values in inputs.items()}
        found.append((tensors, sum(len(ids) for ids, _ in group)))
    return found


# Timing


class Peer:
    """A model that is trained."""

    def __init__(self, given: argparse.Namespace) -> None:
        if given.kind == "unsloth":
            self.model = unsloth_model(given)
        else:
            self.model = transformers_model(given, liger=given.kind == "liger")
        import torch

        self.device = device()
        self.model.train()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        fused = self.device == "cuda"
        self.optimizer = torch.optim.AdamW(self.weights, RATE, weight_decay=0.0, fused=fused)
        mixed = self.weights[0].dtype != torch.bfloat16
        self.context: Any = contextlib.nullcontext
        if mixed:
            self.context = lambda: torch.autocast(self.device, torch.bfloat16)

    def step(self, inputs: dict[str, Any]) -> float:
        """Seconds of one, the device's own work included."""
        import torch

        if self.device == "cuda":
            inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
        self._wait()
        started = time.perf_counter()
        on_device = {n: tensor.to(self.device, non_blocking=True) for n, tensor in inputs.items()}
        with self.context():
            loss = self.model(**on_device).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, CLIPPING)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()


def measured(given: argparse.Namespace) -> dict[str, Any]:
    peer = Peer(given)
    import torch

    batches = batches_of(given, peer.model.config.vocab_size)
    number = given.warmup + given.steps
    taken = [batches[i % len(batches)] for i in range(number)]
    if peer.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    results = [(tokens, peer.step(inputs)) for inputs, tokens in taken][given.warmup :]
    seconds = [taken for _, taken in results]
    memory = {}
    if peer.device == "cuda":
        memory["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        memory["reserved_memory_bytes"] = torch.cuda.max_memory_reserved()
    return {
        "tokens": sum(tokens for tokens, _ in results),
        "seconds": sum(seconds),
        "seconds_per_step": spread(seconds),
        "tokens_per_second": spread([tokens / taken for tokens, taken in results]),
        **memory,
        "trainable": sum(p.numel() for p in peer.weights),
        "adapters": str(peer.weights[0].dtype),
        "environment": {n: v for n, v in os.environ.items() if n.startswith("UNSLOTH_")},
        "packages": versions(),
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def main() -> None:
    given = options()
    if given.kind == "weights":
        write_weights(given.folder)
        print(json_text({"folder": str(given.folder)}))
    else:
        print(json_text(measured(given)))


if __name__ == "__main__":
    main()
