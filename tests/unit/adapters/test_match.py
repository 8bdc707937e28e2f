"""What is said of tensors that are not a model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama.adapters.attach import attach, trainable_parameters
from llama.adapters.match import Shapes, expected_shapes, misfits
from llama.adapters.peft_config import Description
from llama.adapters.peft_format import CONFIG, AdapterConfig
from llama.model.config import HUGGINGFACE_NAMES, LINEARS
from llama.model.transformer import Transformer
from llama.parallel.mesh import TensorParallel
from llama.settings import LoRAOptions
from tests.support.model_files import TINY

FOLDER = Path("adapter")


def problems(found: Shapes, targets: tuple[str, ...] = LINEARS, rank: int = 4) -> list[str]:
    config = AdapterConfig(LoRAOptions(rank, 8.0, 0.0, targets), "")
    document = {"target_modules": [HUGGINGFACE_NAMES[name] for name in targets]}
    return misfits(Description(FOLDER / CONFIG, config, {}, False, {}, document), found, TINY)


def test_the_shapes_are_those_that_attaching_gives() -> None:
    with torch.device("meta"):
        model = Transformer(TINY)
        attach(model, LoRAOptions(4, 8.0, 0.0, LINEARS))
    attached = {name: tuple(p.shape) for name, p in trainable_parameters(model).items()}
    assert expected_shapes(TINY, LoRAOptions(4, targets=LINEARS)) == attached
    assert problems(attached) == []


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("targets", [("wq", "wv"), ("wo",), LINEARS])
def test_a_shard_is_called_one(targets: tuple[str, ...], degree: int) -> None:
    """What each rank holds, as attaching under tensor parallelism gives it."""
    with torch.device("meta"):
        model = Transformer(TINY, TensorParallel(1, degree))
        attach(model, LoRAOptions(4, 8.0, 0.0, targets))
    held = {name: tuple(p.shape) for name, p in trainable_parameters(model).items()}
    (line,) = problems(held, targets)
    assert f"1/{degree} of the whole: this is one tensor-parallel shard" in line


def test_another_width_is_no_shard() -> None:
    found = expected_shapes(TINY, LoRAOptions(4, targets=("wq",)))
    name = "layers.1.attention.wq.lora.a"
    (line,) = problems(found | {name: (4, 32)}, ("wq",))
    assert "made for another base" in line and "has shape [4, 32], this model needs [4, 64]" in line


def test_many_alike_are_counted() -> None:
    found = expected_shapes(TINY, LoRAOptions(4, targets=LINEARS))
    lines = problems({name: shape for name, shape in found.items() if name.startswith("layers.0")})
    assert len(lines) == 6 and lines[-1].endswith("missing tensor (and 9 more)")


def test_another_rank_is_one_line() -> None:
    (line,) = problems(expected_shapes(TINY, LoRAOptions(4, targets=LINEARS)), rank=8)
    assert "r is 8" in line and "have rank 4" in line
