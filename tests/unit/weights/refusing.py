"""What the tests of refusals share: open, expect lines, spoil files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama.errors import UserError
from llama.weights.open_model import open_model


def problems(model: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        open_model(str(model))
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


def only(model: Path) -> str:
    found = problems(model)
    assert len(found) == 1, found
    return found[0]


def edit_json(path: Path, change: dict[str, Any]) -> None:
    """Set fields; None removes one."""
    value = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def edit_shard(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = torch.load(path)
    change(tensors)
    torch.save(tensors, path)


def edit_safetensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
