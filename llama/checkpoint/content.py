"""What a checkpoint says besides its tensors, to text and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors import SafetensorError

from llama.checkpoint.manifest import FORMAT
from llama.checkpoint.shards import ShardedState
from llama.engine.state import MOMENTS, EngineState
from llama.files.json_text import json_text

TRAINER = "trainer.json"
TENSORS = 1 + len(MOMENTS)
"""Of each parameter that trains."""
_BESIDE = 1 << 26
"""Bytes that what is no tensor may take: the names of some thousand tensors, thrice, and a summary
with the losses of two million epochs."""
ILL_FORMED = (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What a document raises that is not what this program writes, though its hash agrees."""


@dataclass
class RunState:
    """Where a run stands, beside its engine's state: with both it goes on as if never stopped."""

    epoch: int = 0
    window: int = 0
    """The next window of the epoch; above 0 as long as the epoch has not been ended."""
    loss_sum: float = 0.0
    supervised: int = 0
    """Of the epoch so far."""
    tokens: int = 0
    step_seconds: float = 0.0
    """Of the steps so far; evaluating and saving is not in it."""
    seconds: float = 0.0
    """Of the whole run so far."""
    metrics_lines: int = 0
    trains: bool = False
    """Whether every tensor that trains was seen to."""
    evaluated: int = 0
    """The step that was evaluated last."""
    best_step: int = 0
    """Of the lowest held-out loss so far; 0 where no step has one."""
    best_loss: float = 0.0
    """That loss."""
    since_best: int = 0
    """Evaluations since then, or where no step has one in all."""
    samples_before: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """All that a checkpoint holds."""

    engine: EngineState | ShardedState
    run: RunState
    total_steps: int
    identity: dict[str, Any]
    """What the run is made of; a run that differs in any of it is another."""
    topology: dict[str, Any]
    """How it was spread; this may change."""
    random: dict[str, str]
    """State of torch's generators, in hex."""
    beside: dict[str, bytes] = field(default_factory=dict)
    """Files of its adapter's folder, by name, that say what the adapter is: written, and not read
    again."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to whole shape of each parameter that trains."""
        if isinstance(self.engine, ShardedState):
            return self.engine.shapes
        return {name: tuple(tensor.shape) for name, tensor in self.engine.masters.items()}

    @property
    def fixed(self) -> int:
        """Numbers of what is kept beside them and does not train."""
        if isinstance(self.engine, ShardedState):
            return 0
        return sum(tensor.numel() for tensor in self.engine.fixed.values())

    @property
    def step(self) -> int:
        return int(self.engine.counters["steps"])


def most_bytes(parameters: int, fixed: int = 0) -> int:
    """What a checkpoint of so many trained parameters may take on the disk: a float32 master and
    two moments of each, what is kept of `fixed` others, and the names and numbers beside them."""
    return 4 * (TENSORS * parameters + fixed) + _BESIDE


def trainer_text(checkpoint: Checkpoint, **more: Any) -> bytes:
    """`trainer.json`; `more` is what the tensors' own form adds to it."""
    trainer = {
        "format": FORMAT,
        "step": checkpoint.step,
        "total_steps": checkpoint.total_steps,
        "counters": checkpoint.engine.counters,
        "run": asdict(checkpoint.run),
        "identity": checkpoint.identity,
        "topology": checkpoint.topology,
        "random": checkpoint.random,
        **more,
    }
    return (json_text(trainer, indent=1) + "\n").encode()


def read_trainer(content: bytes) -> dict[str, Any]:
    """The document again. Raises what is in `ILL_FORMED`."""
    return json.loads(content)


def checkpoint_of(engine: EngineState | ShardedState, trainer: dict[str, Any]) -> Checkpoint:
    """The checkpoint of a document of `trainer_text`. Raises what is in `ILL_FORMED`."""
    return Checkpoint(
        engine=engine,
        run=_run_state(trainer["run"]),
        total_steps=int(trainer["total_steps"]),
        identity=dict(trainer["identity"]),
        topology=dict(trainer["topology"]),
        random=dict(trainer["random"]),
    )


def _run_state(document: dict[str, Any]) -> RunState:
    """Raises `TypeError` for a field that is missing, unknown or of another type."""
    fresh = asdict(RunState())
    for name, default in fresh.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(document.get(name), kinds):
            raise TypeError(f"{TRAINER}: run.{name}: found {document.get(name)!r}")
    return RunState(**document)
