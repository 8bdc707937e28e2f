"""The run that `test_training_against_peft` makes twice: its settings and its batches."""

from __future__ import annotations

import random
from dataclasses import replace

from llama.data.packing import PackedRow
from llama.data.types import IGNORE, Example
from llama.settings import LoRAOptions
from tests.support.tiny_runs import CONFIG

STEPS = 20
STAGES = (0, 1)
"""ZeRO's; float32 goes through two quite different optimizers of DeepSpeed's, and a third at 3."""
LORA = LoRAOptions(rank=4, alpha=16.0, dropout=0.0, targets=("wq", "wk", "wv", "wo", "w1", "w2"))
VARIANTS = {
    "lora": LORA,
    "rslora": replace(LORA, alpha=6.0, scale="alpha/sqrt(r)"),
    "loraplus": replace(LORA, b_lr_ratio=4.0),
    "dora": replace(LORA, kind="dora"),
    "pissa": replace(LORA, alpha=6.0, start="pissa"),
}
ADAM = {"lr": 5e-3, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.1}
CLIP = 1.5
FULL_CLIP = 2.0
"""Where all of a model trains, whose gradients are larger."""


def windows() -> list[list[list[PackedRow]]]:
    """Windows of two micro-batches of two rows of one to three documents: lengths, and the numbers
    of supervised tokens, differ throughout."""
    dice = random.Random(0)
    return [[[_row(dice, micro) for _ in range(2)] for micro in range(2)] for _ in range(STEPS)]


def _row(dice: random.Random, micro: int) -> PackedRow:
    return [_document(dice, micro) for _ in range(dice.randrange(1, 4))]


def _document(dice: random.Random, micro: int) -> Example:
    """Mostly supervised in a window's first micro-batch, hardly in its second."""
    ids = [dice.randrange(CONFIG.vocab_size) for _ in range(dice.randrange(5, 40))]
    prompt = 1 if micro == 0 else len(ids) - dice.randrange(1, 4)
    return Example(ids, [IGNORE] * prompt + ids[prompt:], row=1)
