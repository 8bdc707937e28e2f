"""A run of `--method full` is the run that transformers makes of the same batches, on one process
and on two, whatever the ZeRO stage; and what it writes is a model of theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama.model.config import ModelConfig
from tests.parity.test_training_against_peft import their_window
from tests.parity.training_case import ADAM, FULL_CLIP, STEPS, windows
from tests.support.closeness import TRAINED, assert_close, distance
from tests.support.tiny_runs import CONFIG, torchrun_module, write_model

MODELS = {
    "untied, with biases": replace(CONFIG, attention_bias=True, mlp_bias=True),
    "tied": replace(CONFIG, tied_embedding=True),
}
MOVED = 1e-3
"""Of the way that training has gone: ten roundings of what the weights themselves may be off by,
since Adam moves an element whose gradient is all rounding as far as any."""


def theirs(folder: Path) -> tuple[list[float], list[float], Any, dict[str, torch.Tensor]]:
    """Losses, norms of the gradients before clipping, the model at the end, and how far it went."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    losses, norms = [], []
    for window in windows():
        losses.append(their_window(model, window))
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), FULL_CLIP)))
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms, model, initial


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=pytest.mark.long if name == "tied" else ())
        for name, config in MODELS.items()
    ],
)
def test_twenty_steps_equal_transformers_s(config: ModelConfig, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", config)
    losses, norms, model, initial = theirs(folder)
    assert len(losses) == STEPS
    assert min(norms) < FULL_CLIP < max(norms), f"the clip must act, and not always: {norms}"
    end = {name: p.detach() for name, p in model.named_parameters()}
    for ranks, stages in ((1, (0, 1)), (2, (2, 3))):
        (out := tmp_path / f"on-{ranks}").mkdir()
        done = torchrun_module(
            "tests.parity.full_steps", folder, out, ",".join(map(str, stages)), ranks=ranks
        )
        assert done.returncode == 0, done.stderr
        for stage in stages:
            found = json.loads((out / f"stage-{stage}.json").read_text())
            assert_close(found["losses"], losses, TRAINED, "losses")
            assert_close(found["grad_norms"], norms, TRAINED, "norms")
            ours = load_file(out / f"stage-{stage}" / "model.safetensors")
            assert distance(ours, end) <= TRAINED
            moved = [{n: t[n] - initial[n] for n in initial} for t in (ours, end)]
            assert distance(*moved) <= MOVED
