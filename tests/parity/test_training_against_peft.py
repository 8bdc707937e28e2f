"""A LoRA run is the run that transformers and PEFT make of the same batches.

Theirs is written out here as their pages have it: documents padded to the longest, an attention
mask, `torch.optim.AdamW`, gradients accumulated and clipped. Ours is `engine_steps`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from llama.data.packing import PackedRow
from llama.data.types import IGNORE, Example
from llama.model.config import HUGGINGFACE_NAMES
from llama.settings import LoRAOptions
from tests.parity.training_case import ADAM, CLIP, STAGES, STEPS, VARIANTS, windows
from tests.support.closeness import TRAINED, assert_close, distance
from tests.support.model_files import ROOT
from tests.support.tiny_runs import write_model


def ours(folder: Path, out: Path, variant: str) -> dict[str, Any]:
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity.engine_steps", str(folder), str(out), variant],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "results.json").read_text())


def padded(documents: list[Example]) -> dict[str, torch.Tensor]:
    longest = max(len(document.input_ids) for document in documents)

    def fill(values: list[int], value: int) -> list[int]:
        return values + [value] * (longest - len(values))

    return {
        "input_ids": torch.tensor([fill(d.input_ids, 0) for d in documents]),
        "labels": torch.tensor([fill(d.labels, IGNORE) for d in documents]),
        "attention_mask": torch.tensor([fill([1] * len(d.input_ids), 0) for d in documents]),
    }


def their_window(model: Any, window: list[list[PackedRow]]) -> float:
    """Leave the gradient of the window's mean loss over its supervised tokens; return that loss."""
    documents = [list(chain.from_iterable(rows)) for rows in window]
    supervised = sum(d.supervised for d in chain.from_iterable(documents))
    total = 0.0
    for micro_batch in documents:
        batch = padded(micro_batch)
        labels = batch.pop("labels")[:, 1:].flatten()
        logits = model(**batch).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / supervised
        loss.backward()
        total += loss.item()
    return total


def their_model(folder: Path, out: Path, lora: LoRAOptions) -> Any:
    """With our first values, but where PEFT makes them of the model itself: then they are kept in
    `out/begun`, as its pages say."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if lora.start == "uniform":
        return PeftModel.from_pretrained(base, out / "initial", is_trainable=True)
    targets = [HUGGINGFACE_NAMES[name] for name in lora.targets]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # it takes any number
        target_modules=targets,
        init_lora_weights=lora.start,  # type: ignore[arg-type]
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(base, config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(out / "begun")
    model.peft_config["default"].init_lora_weights = lora.start
    return model


def their_adapter(model: Any, out: Path, lora: LoRAOptions) -> dict[str, torch.Tensor]:
    """As PEFT writes it for the untouched base."""
    begun = None if lora.start == "uniform" else str(out / "begun")
    model.save_pretrained(out / "theirs", path_initial_model_for_weight_conversion=begun)
    return load_file(out / "theirs" / "adapter_model.safetensors")


def their_optimizer(model: Any, lora: LoRAOptions) -> torch.optim.Optimizer:
    from peft.optimizers import create_loraplus_optimizer

    if lora.b_lr_ratio == 1:
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **ADAM)
    adam = {name: value for name, value in ADAM.items() if name != "weight_decay"}
    decay = ADAM["weight_decay"]
    ratio = lora.b_lr_ratio
    return create_loraplus_optimizer(
        model, torch.optim.AdamW, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **adam
    )


def theirs(
    folder: Path, out: Path, lora: LoRAOptions
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, norms of the gradients before clipping, and the adapter at the end."""
    model = their_model(folder, out, lora).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = their_optimizer(model, lora)
    losses, norms = [], []
    for window in windows():
        losses.append(their_window(model, window))
        norms.append(float(torch.nn.utils.clip_grad_norm_(trainable, CLIP)))
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms, their_adapter(model, out, lora)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_steps_equal_peft_s(variant: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    results = ours(folder, tmp_path / "out", variant)
    losses, norms, adapter = theirs(folder, tmp_path / "out", VARIANTS[variant])
    assert len(losses) == STEPS
    assert min(norms) < CLIP < max(norms), "the clip must act, and not always"
    for stage in STAGES:
        found = results[str(stage)]
        assert found["supervised"] == [
            sum(d.supervised for rows in window for row in rows for d in row)
            for window in windows()
        ]
        assert_close(found["losses"], losses, TRAINED, "losses")
        if stage > 0:
            assert_close(found["grad_norms"], norms, TRAINED, "norms")
        end = load_file(tmp_path / "out" / f"stage-{stage}" / "adapter_model.safetensors")
        assert distance(end, adapter) <= TRAINED
