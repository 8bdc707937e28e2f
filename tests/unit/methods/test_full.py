"""What `--method full` writes, and when its ranks meet."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama.methods import full
from llama.methods.full import FullMethod
from llama.settings import LoRAOptions
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.support.model_files import TINY


class Writer:
    def __init__(self, done: list[str]) -> None:
        self._done = done

    def add(self, name: str, value: torch.Tensor) -> None:
        self._done.append(f"write {name}")

    def finish(self) -> list[str]:
        return []


@pytest.mark.parametrize("is_main", [True, False])
def test_no_parameter_is_joined_before_the_main_rank_has_written_the_last(
    is_main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a collective is called and goes on by itself, and is given up if it is not done ten
    minutes later: a slow disk of one rank would end the others."""
    done: list[str] = []

    class Parts:
        def whole(self, name: str) -> torch.Tensor:
            done.append(f"join {name}")
            return torch.zeros(1)

    monkeypatch.setattr(full, "WRITERS", {"huggingface": lambda *_: Writer(done)})
    monkeypatch.setattr(full, "on_main", lambda mesh, make: make())
    mesh = SimpleNamespace(is_main=is_main, wait=lambda: done.append("meet"))
    engine: Any = SimpleNamespace(mesh=mesh, parts=Parts())
    method = FullMethod(LoRAOptions(), ModelSource("tiny", RandomReader(TINY), None))
    about: Any = SimpleNamespace(files=lambda template: {})
    method.write(engine, tmp_path, None, about)
    names = list(method.shapes())
    each = ["meet", "join {}", "write {}"] if is_main else ["meet", "join {}"]
    assert done == [step.format(name) for name in names for step in each]
