"""The house: what stands on which floor follows from who imports whom, and each heavy package has
one door.

A floor may import from those below it and from nothing beside or above it. The same floors are in
the drawing of docs/architecture.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.model_files import ROOT

FLOORS: tuple[tuple[str, ...], ...] = (
    ("launcher", "__main__"),
    ("commands",),
    ("train",),
    ("checkpoint", "assembly"),
    ("methods",),
    ("engine", "planning"),
    ("objectives", "adapters", "tasks"),
    ("data", "settings", "weights", "metrics", "fused"),
    ("model",),
    ("tokenizer", "launch", "parallel", "pages"),
    ("files", "base"),
    ("kernels", "errors", "notes"),
)
"""The top one first."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LOOSE_FILES = 4
FILE_LINES, FUNCTION_LINES = 350, 60

DOORS = {
    "fairscale": ("llama/parallel/",),
    "deepspeed": ("llama/engine/",),
    "bitsandbytes": ("llama/base/nf4.py",),
    "tensorboard": ("llama/metrics/sinks/tensorboard_sink.py",),
    "torch.utils.tensorboard": ("llama/metrics/sinks/tensorboard_sink.py",),
    "trackio": ("llama/metrics/sinks/trackio_sink.py",),
    "wandb": ("llama/metrics/sinks/wandb_sink.py",),
    "mlflow": ("llama/metrics/sinks/mlflow_sink.py",),
    "matplotlib": ("llama/pages/figures.py",),
    "prompt_toolkit": ("llama/commands/chat/reading.py",),
    "transformers": ("llama/commands/benchmark/peer.py",),
    "peft": ("llama/commands/benchmark/peer.py",),
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


def room_of(path: Path) -> str:
    first, second, *_ = path.relative_to(ROOT).with_suffix("").parts
    return first if first == "launcher" else second


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_import_runs_up() -> None:
    wrong = []
    for path in FILES:
        here = room_of(path)
        for name in imported(path):
            if not within(name, "llama") or here == "__init__":
                continue
            there = name.split(".")[1]
            if here != there and FLOOR[here] >= FLOOR[there]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_no_circle() -> None:
    """Not within a room either: files import one another along no closed path. A package's own
    `__init__` stands for its files, and is left out where one of them imports a sibling."""
    modules = {module_of(path): path for path in FILES}
    arrows = {
        module: {
            target
            for name in imported(path)
            for target in (name, name.rpartition(".")[0])
            if target in modules and target != module and not within(module, target)
        }
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for target in arrows[module]:
                visit(target, (*above, module))
            done.add(module)

    for module in modules:
        visit(module, ())


def test_every_room_has_its_floor() -> None:
    """A new one is to be put in its place above."""
    assert {room_of(path) for path in FILES} - {"__init__"} == set(FLOOR)


def test_few_files_lie_loose() -> None:
    assert len(list((ROOT / "llama").glob("*.py"))) <= LOOSE_FILES


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("package", DOORS)
def test_one_door(package: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(within(name, package) for name in imported(path))
    }
    strangers = {user for user in users if not user.startswith(DOORS[package])}
    assert not strangers, f"{package} belongs to {DOORS[package] or 'the tests alone'}"


def test_the_settings_need_no_torch() -> None:
    """So that a typo on the command line is answered at once."""
    code = (
        "import sys; import llama.settings, llama.settings.options, llama.commands.doctor.options;"
        "print(sorted({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_is_used_of_fairscale() -> None:
    """Its groups and its differentiable collectives. Its layers allocate whole matrices, its
    random-number tracker and its checkpointing need CUDA, and its loss changes the logits."""
    used = {
        name
        for path in FILES
        for name in imported(path)
        if within(name, "fairscale.nn.model_parallel")
    }
    parts = ("initialize", "mappings")
    assert used and all(name.split(".")[3] in parts for name in used), used
