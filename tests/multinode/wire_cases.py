"""What is measured on the wire, and what each measure is to be held against, in bytes a step that
leave one of two hosts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llama.adapters.match import parameter_count
from llama.model.config import LINEARS
from llama.planning.wire import base_gathered
from llama.settings import LoRAOptions
from llama.settings.sharing import ALL, HOST, WHOLE
from tests.support.tiny_runs import CONFIG

MODEL = replace(CONFIG, dim=256, n_layers=4, n_heads=8, n_kv_heads=4, head_dim=32, ffn_dim=512)
RANK, TARGETS = 64, LINEARS
ADAPTER = parameter_count(MODEL, LoRAOptions(RANK, targets=TARGETS))
"""Parameters: enough that they, and not headers, are what crosses."""
BLOCK = (MODEL.parameter_count() - MODEL.with_layers(0).parameter_count()) // MODEL.n_layers
DEPTHS = (2, MODEL.n_layers)
TOKENS, LAYER_RANK = 192, 16
"""Of a row, and of the adapters on wq and wv where it is layers that are measured."""
BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Case:
    """Data-parallel over the two hosts."""

    stage: int
    precision: str
    accumulation: int = 1

    @property
    def least(self) -> int:
        """Bytes that must leave each of n ranks that start with different gradients of the adapter
        and end with equal ones, or with parameters made of them: 2(n-1)/n of the adapter's, by
        an all-reduce round a ring (Patarasuk and Yuan, 2009), or a reduce-scatter and an
        all-gather. Here n is 2."""
        return ADAPTER * BYTES[self.precision]

    @property
    def expected(self) -> int:
        """Bytes of this stage's own scheme: ZeRO 2 sends gradients after each micro-batch; ZeRO 3
        gathers all weights for each forward and each backward too, and nothing after the step; its
        reduce-scatter is DeepSpeed's, which under gloo is an all-reduce inside."""
        gradients = 1 if self.stage < 2 else self.accumulation
        elements = (gradients + 1) * ADAPTER
        if self.stage == 3:
            elements = gradients * (4 * ADAPTER + 2 * MODEL.parameter_count())
        return elements * BYTES[self.precision] // 2


CASES = (
    Case(0, "fp32"),
    Case(1, "fp32"),
    Case(1, "bf16"),
    Case(1, "bf16", accumulation=3),
    Case(2, "bf16"),
    Case(2, "bf16", accumulation=3),
    Case(3, "bf16"),
    Case(3, "bf16", accumulation=3),
)


@dataclass(frozen=True)
class Layer:
    """One block of the model, tensor-parallel over the two hosts, in float32."""

    checkpointing: Literal["none", "block"]

    @property
    def expected(self) -> int:
        """Sums of `[T, D]` after each half of the block, in the forward and for the gradient of
        its input in the backward (Shoeybi et al., "Megatron-LM", 2019, section 3), each as many
        bytes as it has. What is recomputed stops short of the second. Adapters on wq and wv sum
        the gradient of `[T, R]`."""
        sums = 5 if self.checkpointing == "block" else 4
        return 4 * TOKENS * (sums * MODEL.dim + 2 * LAYER_RANK)


LAYERS = (Layer("none"), Layer("block"))


SHARED_MODEL, SHARED_LORA, EACH = MODEL.with_layers(8), LoRAOptions(8), 2
"""Of a base that ranks share: more blocks than have room at a time, an adapter of wq and wv, and
the ranks of each host."""


@dataclass(frozen=True)
class Shared:
    """Data-parallel over two ranks on each of two hosts, ZeRO 1 in bf16, one micro-batch."""

    shard_base: str

    @property
    def expected(self) -> int:
        """Bytes that leave a host: half of each rank's gradients go to the two owners on the other
        one; the parameters go round a ring of all ranks, which leaves each host once, and so does
        a base that all of them share. One that a host shares does not leave it."""
        adapter = 2 * parameter_count(SHARED_MODEL, SHARED_LORA)
        crosses = base_gathered(SHARED_MODEL, 2 * EACH, 1, 2) if self.shard_base == ALL else 0
        return round(adapter + 3 / 4 * adapter + crosses)


SHARINGS = (Shared(WHOLE), Shared(HOST), Shared(ALL))
