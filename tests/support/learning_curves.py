"""Held-out loss by rank, targets and rate: `python -m tests.support.learning_curves OUT`.

Trains the bundled model on the bundled rows, once for each choice, as `train --deepspeed
ds_configs/lora_bf16.json` would, and asks the held-out rows every few steps. OUT gets curves.json
after each choice (one that it has is not trained again), and the figures; the table is printed.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llama.assembly.device_settings import resolve_here
from llama.assembly.engine import build_engine
from llama.assembly.model import find_tokenizer
from llama.assembly.use import summed_loss
from llama.data.batches import Epochs, eval_batches
from llama.data.prepare import Prepared, Reading, prepare
from llama.data.rows import bundled
from llama.engine import start_processes
from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.launch.processes import stop_processes
from llama.pages.figures import Series, lines
from llama.parallel.mesh import Mesh, create_mesh
from llama.settings import LoRAOptions, TrainOptions, deepspeed_json
from llama.tokenizer.templates import load_template
from llama.weights.open_model import ModelSource, open_model

EPOCHS = 3
EVERY = 4
"""Steps between evaluations: half an epoch."""
ALPHA_BY_RANK = 2.0
"""Every rank is added to the layer times this, so that the rank alone differs."""
Q_V = ("wq", "wv")


@dataclass(frozen=True)
class Choice:
    """One run. `rate` None is what `"auto"` gives: 1.7 / the width of the model."""

    rank: int = 16
    targets: tuple[str, ...] = Q_V
    rate: float | None = None

    @property
    def name(self) -> str:
        rate = "auto" if self.rate is None else f"{self.rate:g}"
        return f"rank {self.rank}, {'q,v' if self.targets == Q_V else 'all-linear'}, rate {rate}"


@dataclass(frozen=True)
class Data:
    """What every run has."""

    source: ModelSource
    mesh: Mesh
    device: torch.device
    training: Prepared
    held_out: Prepared


ALL = LoRAOptions(targets=("all-linear",)).targets
USUAL = Choice()
RATES = [Choice(rate=3e-4), Choice(rate=1e-3), USUAL, Choice(rate=1e-2)]
RANKS = [Choice(rank=4), USUAL, Choice(rank=64)]
TARGETS = [USUAL, Choice(targets=ALL), Choice(rate=1e-3), Choice(targets=ALL, rate=1e-3)]
FIGURES = {"rate": RATES, "rank": RANKS, "targets": TARGETS}


def curve(choice: Choice, data: Data) -> dict[str, Any]:
    """Train it; held-out loss and mean training loss by step, and what it cost."""
    lora = LoRAOptions(rank=choice.rank, alpha=ALPHA_BY_RANK * choice.rank, targets=choice.targets)
    options = TrainOptions(lora=lora, checkpointing="none")
    document = deepspeed_json.load(deepspeed_json.located(Path("lora_bf16.json")), [])
    if choice.rate is not None:
        document["optimizer"]["params"]["lr"] = choice.rate
    micro_batch, accumulation = deepspeed_json.batch_sizes(document, 1)
    epochs = Epochs(data.training.packed, micro_batch, accumulation, seed=options.seed)
    total = EPOCHS * epochs.windows_per_epoch
    resolved = resolve_here(document, data.mesh, total, data.source.config)
    began, spent = time.monotonic(), time.process_time()
    engine = build_engine(data.source, options, resolved, data.mesh, data.device)

    def asked() -> float:
        summed, supervised = summed_loss(
            engine.model, eval_batches(data.held_out.packed, 1), data.device
        )
        return summed / supervised

    try:
        losses, evaluations = [], [(0, asked())]
        for epoch in range(EPOCHS):
            for window in epochs.windows(epoch):
                losses.append(engine.step(window).loss)
                if engine.steps % EVERY == 0:
                    evaluations.append((engine.steps, asked()))
                    print(choice.name, evaluations[-1], file=sys.stderr, flush=True)
        parameters = sum(p.numel() for p in engine.trainable.values())
    finally:
        engine.close()
    return {
        **asdict(choice),
        "learning_rate": resolved.engine["optimizer"]["params"]["lr"],
        "parameters": parameters,
        "losses": losses,
        "evaluations": evaluations,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - spent, 1),
    }


def table(curves: dict[str, Any]) -> str:
    """A line for each choice, in Markdown."""
    names = ["choice", "rate", "parameters", "lowest held-out loss", "at step", "at the end"]
    names.append("training loss of the last epoch")
    rows = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for name, found in curves.items():
        step, lowest = min(found["evaluations"], key=lambda pair: pair[1])
        end = sum(found["losses"][-8:]) / len(found["losses"][-8:])
        rows.append(
            f"| {name} | {found['learning_rate']:.3g} | {found['parameters']:,} | {lowest:.4f} | "
            f"{step} | {found['evaluations'][-1][1]:.4f} | {end:.4f} |"
        )
    return "\n".join(rows) + "\n"


def draw(curves: dict[str, Any], out: Path) -> None:
    for about, choices in FIGURES.items():
        series = []
        for colour, choice in enumerate(choices):
            found = curves[choice.name]
            steps, losses = zip(*found["evaluations"], strict=True)
            lowest = min(found["evaluations"], key=lambda pair: pair[1])
            best = (*lowest, f"{lowest[1]:.3f}")
            series.append(Series(choice.name, steps, losses, colour=colour, best=best))
        lines(series, "optimizer step", "held-out loss", height=3.4).png(
            out / f"curves-{about}.png"
        )


def prepared(device: torch.device) -> Data:
    source = open_model(TrainOptions().model, device)
    tokenizer = find_tokenizer(source, None)
    template = load_template(None, tokenizer)
    reading = Reading(TrainOptions().seq_len)
    training, held_out = (
        prepare([bundled(name)], template, tokenizer, reading)
        for name in ("instructions_200", "heldout_40")
    )
    return Data(source, create_mesh(1), device, training, held_out)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / "curves.json"
    curves: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    device = start_processes()
    try:
        data = prepared(device)
        for choice in dict.fromkeys([*RATES, *RANKS, *TARGETS]):
            if choice.name not in curves:
                curves[choice.name] = curve(choice, data)
                write_file(file, (json_text(curves, indent=1) + "\n").encode())
    finally:
        stop_processes()
    draw(curves, out)
    print(table(curves))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
