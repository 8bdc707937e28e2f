"""A plan for a reader: a table in the terminal, a stacked bar, a page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llama.files.atomic import write_file
from llama.files.json_text import json_text
from llama.metrics.hardware import GIB
from llama.model.config import LINEARS
from llama.pages.figures import Bar, Figure, stacked_bars
from llama.pages.page import Code, Drawing, Section, Table, Text, page
from llama.planning.job import Job
from llama.planning.plan import Plan

_GB = 1e9


def headline(plan: Plan, model: str, gpu: str) -> str:
    """What is planned, in a line."""
    job, place = plan.job, plan.place
    gpus = job.tensor_parallel * job.data_parallel  # those that share tokens are among the latter
    nodes = f" on {place.nodes} nodes" if place.nodes > 1 else ""
    trained = "every parameter trains"
    if job.lora is not None:
        targets = (
            "all layers" if set(job.lora.targets) == set(LINEARS) else ",".join(job.lora.targets)
        )
        trained = f"{job.lora.title} r{job.lora.rank} on {targets}"
    base = f", base sharded over {job.base_sharers}" if job.shares_base else ""
    degrees = {"TP": job.tensor_parallel, "SP": job.sequence_parallel}
    parallel = "".join(f", {name} {size}" for name, size in degrees.items() if size > 1)
    return (
        f"{model} on {gpus} x {gpu}{nodes}: {trained}, {job.precision}, ZeRO-{job.zero.stage}"
        f"{base}{parallel}, {shape(job)}, checkpointing {_kept(job)}"
        f"{', compiled' if job.fused else ''}"
    )


def shape(job: Job) -> str:
    """As `2 x 1 x 1024 tokens`: micro-batches, rows, tokens."""
    rows = f"{job.micro_batch} x {job.seq_len}"
    if job.documents is not None:
        rows = f"{job.micro_batch} packed rows, at most {sum(job.lengths)} tokens"
    return f"{job.accumulation} x {rows}" if job.accumulation > 1 else rows


def _kept(job: Job) -> str:
    counts = Counter(level.name.lower().replace("_", " ") for level in job.kept)
    if isinstance(job.checkpointing, str):
        return job.checkpointing
    return ", ".join(f"{count} blocks keep {name}" for name, count in counts.items())


def table(plan: Plan) -> str:
    """Memory of each GPU term by term, whether it fits, work, wire and time."""
    rows = [*memory_rows(plan), ("", "", "")]
    lines = [f"  {name:18} {size:>9}  {why}".rstrip() for name, size, why in rows]
    lines += [f"  {name:18} {text}" for name, text in facts(plan)]
    lines += [f"  {'assumed' if n == 0 else '':18} {a}" for n, a in enumerate(plan.assumptions())]
    return "\n".join(["  of each GPU              GiB", *lines])


def memory_rows(plan: Plan) -> list[tuple[str, str, str]]:
    """Name, GiB and reason of each term, with the sums."""
    memory = plan.memory
    rows = [(term.name, _gib(term.bytes), term.why) for term in memory.terms]
    rows.append(("at the peak", _gib(memory.peak_bytes), "what torch shows as allocated"))
    rows += [(term.name, _gib(term.bytes), term.why) for term in memory.beside]
    verdict = "it fits" if plan.fits else "IT DOES NOT FIT"
    rows.append(("in all", _gib(memory.used_bytes), f"of {_gib(plan.available)} GiB: {verdict}"))
    return rows


def facts(plan: Plan) -> list[tuple[str, str]]:
    """What else is planned, a line each."""
    job, step = plan.job, plan.step
    k = job.accumulation
    parts = sorted(step.parts.items(), key=lambda part: -part[1])
    taken = ", ".join(f"{name} {_ms(seconds)}" for name, seconds in parts if seconds >= 5e-4)
    found = [
        ("fits at most", f"{plan.micro_batch} rows of {job.seq_len} in a micro-batch; rows of "
         f"{plan.seq_len:,} tokens, {job.micro_batch} of them"),
        ("a step", f"{k * plan.work.flops / 1e12:,.1f} TFLOP; "
         f"{plan.traffic.total / _GB:,.3f} GB leave the GPU"),
        ("takes", f"{step.total:.3f} s, waiting most for {step.bound_by} (GPU {_ms(step.device)}: "
         f"{taken}; host {_ms(step.host)})"),
        ("that is", f"{plan.tokens_per_second:,.0f} tokens/s, {plan.mfu:.0%} of the GPU's rate"),
    ]  # fmt: skip
    if plan.hours is None:
        found.append(("the run", "give --data, --rows or --max_steps for its hours"))
    else:
        found.append(("the run", f"{plan.steps:,} steps: {_duration(plan.hours)}"))
    return found


def _duration(hours: float) -> str:
    return f"{hours:,.2f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms"


def bar(plan: Plan, label: str) -> Figure:
    """The terms end to end, with what the GPU holds."""
    memory = plan.memory
    parts = {term.name: term.bytes / GIB for term in (*memory.terms, *memory.beside)}
    holds = plan.available / GIB
    return stacked_bars(
        [Bar(label, parts)],
        "GiB of each GPU",
        title="What the run needs",
        limit=(holds, f"{holds:.1f} GiB: the GPU"),
    )


def write(plan: Plan, folder: Path, title: str, gpu: str, command: str | None) -> None:
    """plan.json, plan.png and plan.html."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = bar(plan, gpu)
    document = {"title": title, "command": command, **plan.as_json()}
    write_file(folder / "plan.json", (json_text(document, indent=2) + "\n").encode())
    figure.png(folder / "plan.png")
    source = "plan.json"
    sections = [
        Section(
            "Memory",
            [
                Drawing(figure, source=f"{source}: terms, beside, available_bytes"),
                Table(["", "GiB", ""], memory_rows(plan), source=f"{source}: terms, beside"),
            ],
        ),
        Section("Time and wire", [Table([], facts(plan), source=source, wide=True)]),
        Section("Assumed", [Text(line, wide=True) for line in plan.assumptions()]),
    ]
    if command is not None:
        sections.insert(0, Section("How to run it", [Code(command, wide=True)]))
    write_file(folder / "plan.html", page(title, sections).encode())
