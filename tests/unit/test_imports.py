"""Imports point down, and each heavy package has one door.

Tiers, the top first; a part may import from any tier below its own, and those of one tier do not
know of each other. `lora` is above `weights` for its table of names, `data` above `tokenizer`, and
`benchmark` above `train`, whose steps it times. `config` holds the options of the commands, so it
stands above `model`, of whose layers it knows the names.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model_files import ROOT

TIERS: tuple[tuple[str, ...], ...] = (
    ("launcher",),
    ("benchmark", "verify"),
    ("benchmark_report", "verify_report"),
    ("train", "generate", "evaluate", "doctor"),
    ("config", "inference"),
    ("lora", "data", "metrics"),
    ("weights", "tokenizer"),
    ("model",),
    ("parallel",),
    ("deepspeed_json", "options", "hostfile"),
    ("inputs", "gguf_file"),
    ("errors", "program", "notes"),
)
RANK = {part: tier for tier, parts in enumerate(TIERS) for part in parts}

DOORS = {
    "fairscale": ("llama/parallel/",),
    "deepspeed": ("llama/train/engine/",),
    "tensorboard": ("llama/metrics.py",),
    "torch.utils.tensorboard": ("llama/metrics.py",),
    "transformers": (),
    "peft": (),
    "accelerate": (),
}

FILES = sorted([*(ROOT / "llama").rglob("*.py"), *(ROOT / "launcher").glob("*.py")])


def imported(path: Path) -> Iterator[str]:
    """Dotted names that `path` imports, wherever in it; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    first, second, *_ = path.relative_to(ROOT).with_suffix("").parts
    return first if first == "launcher" else second


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_imports_point_down() -> None:
    wrong = []
    for path in FILES:
        here = part_of(path)
        for name in imported(path):
            if not within(name, "llama") or here == "__init__":
                continue
            there = name.split(".")[1]
            if here != there and RANK[here] >= RANK[there]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_every_part_has_its_tier() -> None:
    """A new one is to be put in its place above."""
    assert {part_of(path) for path in FILES} - {"__init__"} <= set(RANK)


@pytest.mark.parametrize("package", DOORS)
def test_one_door(package: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(within(name, package) for name in imported(path))
    }
    strangers = {user for user in users if not user.startswith(DOORS[package])}
    assert not strangers, f"{package} belongs to {DOORS[package] or 'the tests alone'}"


def test_the_sizes_need_no_torch() -> None:
    """So that a typo on the command line is answered at once."""
    code = (
        "import sys; import llama.config, llama.options, llama.doctor.options;"
        "print(sorted({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_is_used_of_fairscale() -> None:
    """Its groups, layers and their autograd. Its random-number tracker and its checkpointing need
    CUDA, and its loss changes the logits it is given."""
    used = {
        name
        for path in FILES
        for name in imported(path)
        if within(name, "fairscale.nn.model_parallel")
    }
    parts = ("initialize", "layers", "mappings")
    assert used and all(name.split(".")[3] in parts for name in used), used
