"""The measured table as Markdown, JSON and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llama.commands.ablate.measure import Result
from llama.commands.ablate.parts import PARTS
from llama.commands.ablate.verdicts import CHANGED, LEARNT, verdicts
from llama.commands.benchmark.report import machine
from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.pages.figures import Bar, Figure, stacked_bars
from llama.settings import AblateOptions

Document = dict[str, Any]
_MIB, _GIB = 2**20, 2**30


def document(results: Sequence[Result], options: AblateOptions, device: torch.device) -> Document:
    """All that was measured and judged, and on what."""
    return {
        "model": options.model,
        "options": json.loads(json_text(asdict(options), default=str)),  # paths as text
        **machine(device),
        "results": [result.as_json() for result in results],
        "verdicts": [{**asdict(v), "mark": v.mark} for v in verdicts(results)],
    }


def write(found: Document, results: Sequence[Result], folder: Path) -> None:
    """ablation.json, ablation.md and the figures that it shows. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json_text(found, indent=1) + "\n"
    write_file(folder / "ablation.json", text.encode())
    drawn = figures(results)
    for name, figure in drawn.items():
        figure.png(folder / f"{name}.png")
    write_file(folder / "ablation.md", markdown(found, results, list(drawn)).encode())


def figures(results: Sequence[Result]) -> dict[str, Figure]:
    """By the name of their file: what memory is made of and what a step takes, for each method."""
    done = [result for result in results if result.peak is not None]
    unit, size, word = _unit(done)
    drawn: dict[str, Figure] = {}
    for method in dict.fromkeys(result.case.method for result in done):
        own = [result for result in done if result.case.method == method]
        labels = [result.case.name.partition(" ")[2] for result in own]
        bars = [
            Bar(label, {part: result.parts[part] / size for part in PARTS})
            for label, result in zip(labels, own, strict=True)
        ]
        drawn[f"memory-{method}"] = stacked_bars(
            bars, f"{unit} at the peak of a step", title=f"Memory, {word[method]}"
        )
        seconds = [
            Bar(label, {"seconds": result.seconds or 0.0})
            for label, result in zip(labels, own, strict=True)
        ]
        drawn[f"time-{method}"] = stacked_bars(
            seconds, "seconds", title=f"Time of a step, {word[method]}"
        )
    return drawn


_WORDS = {"lora": "LoRA", "full": "all parameters trained"}


def _unit(results: Sequence[Result]) -> tuple[str, int, dict[str, str]]:
    most = max((result.peak or 0 for result in results), default=0)
    return ("GiB", _GIB, _WORDS) if most >= _GIB else ("MiB", _MIB, _WORDS)


def verdict_table(found: Document) -> str:
    """The verdicts for a reader, in Markdown."""
    rows = [
        [v["technique"], v["subject"], v["claim"], v["figure"] or "-", v["mark"]]
        for v in found["verdicts"]
    ]
    return _table(["technique", "", "claimed", "measured: with it, against without", ""], rows)


def markdown(found: Document, results: Sequence[Result], drawn: Sequence[str]) -> str:
    """The page."""
    unit, size, _ = _unit([result for result in results if result.peak is not None])
    head = [
        "combination",
        *(f"{part}" for part in PARTS),
        "peak",
        "planned",
        "off by",
        "s a step",
        "planned",
        "loss",
        "held-out",
    ]
    rows = [_row(result, size) for result in results]
    options = found["options"]
    first = next((r.eval_loss_before for r in results if r.eval_loss_before is not None), None)
    before = "" if first is None else f" Before training the held-out loss is {first:.4f}."
    lines = [
        f"# What each technique saves and costs: {found['model']}",
        "",
        f"Measured by `{found['command']}` on {found['device']}, {found['cpu']}, "
        f"torch {found['packages']['torch']}, deepspeed {found['packages']['deepspeed']}.",
        f"Each combination: {options['steps']} steps of {options['rows']} rows of "
        f"{options['seq_len']} tokens, the same rows in the same order, seed {options['seed']}, "
        f"ZeRO-1. `8x1` is eight micro-batches of one row.{before}",
        "",
        "## The claims",
        "",
        verdict_table(found),
        "",
        f"A ratio counts from {CHANGED:.0%} on, a difference of losses from {LEARNT:.1%} of it on. "
        "Ratios are geometric means over all pairs of combinations that differ in the technique "
        "alone; of a part of memory the most that it had in a step.",
        "",
        "## Figures",
        "",
        *(f"![{name}]({name}.png)" for name in drawn),
        "",
        f"## Every combination ({unit}, seconds)",
        "",
        _table(head, rows),
        "",
        "Parts are what lived at the worst moment of a step, and add up to its peak on a CPU; on a "
        "GPU the peak is torch's own count. What was not measured was planned, and says why.",
        "",
    ]
    return "\n".join(lines)


def _row(result: Result, size: int) -> list[str]:
    planned = f"{result.planned_peak / size:,.1f}"
    seconds = "-" if result.planned_seconds is None else f"{result.planned_seconds:.3f}"
    if result.peak is None:
        blank = ["-"] * len(PARTS)
        return [result.case.name, *blank, result.why_not or "-", planned, "-", "-", seconds, "", ""]
    held_out = "-" if result.eval_loss is None else f"{result.eval_loss:.4f}"
    return [
        result.case.name,
        *(f"{result.parts[part] / size:,.1f}" for part in PARTS),
        f"{result.peak / size:,.1f}",
        planned,
        f"{result.planned_peak / result.peak - 1:+.1%}",
        f"{result.seconds:.3f}",
        seconds,
        f"{result.loss:.4f}",
        held_out,
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
