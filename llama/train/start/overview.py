"""What a run is, in the lines that stand above its bar."""

from __future__ import annotations

from llama.parallel.mesh import Mesh
from llama.planning.job import Zero
from llama.train.record import trainable
from llama.train.start.fits import Verdict
from llama.train.start.inputs import Inputs
from llama.train.start.resume import Start
from llama.train.start.schedule import Schedule

_LABEL = 10


def said_first(
    inputs: Inputs, plan: Schedule, verdict: Verdict | None, mesh: Mesh, start: Start
) -> list[str]:
    """The overview, then what there is to know besides; what "auto" became is for the log."""
    resolved, report = plan.resolved, inputs.training.report
    plain = report.is_plain and not report.duplicates
    befell = inputs.reports()[plain:]  # the overview says what a plain report would
    others = [line for line in resolved.notes if line not in resolved.filled]
    others += _instead_of_zero3(inputs, plan, mesh)
    return [*overview(inputs, plan, verdict, mesh, start), *befell, *others, *start.notes]


def _instead_of_zero3(inputs: Inputs, plan: Schedule, mesh: Mesh) -> list[str]:
    """When a frozen base is better shared out by `--shard_base`. Host memory holds it under ZeRO-3
    alone."""
    zero = Zero.of(plan.resolved.engine)
    frozen = inputs.method.adapters(inputs.options.lora) is not None
    if zero.stage < 3 or zero.offload_param or not frozen or mesh.data_parallel_size == 1:
        return []
    return [
        f"ZeRO-3 gathers each frozen layer from all {mesh.data_parallel_size} data-parallel ranks; "
        "where the ranks of a host can hold the base together, zero_optimization.stage 1 with "
        "--shard_base gathers it within the host, a block at a time and ahead of need "
        "(docs/recipes.md)"
    ]


def overview(
    inputs: Inputs, plan: Schedule, verdict: Verdict | None, mesh: Mesh, start: Start
) -> list[str]:
    """One line each: model, data, what trains, a step, the run's length, memory, ranks, folder."""
    rows = [
        ("model", _model(inputs, plan)),
        ("data", _data(inputs)),
        ("trains", _trains(inputs)),
        ("step", _step(plan, mesh)),
        ("length", _length(inputs, plan, start)),
        *([("memory", verdict.line)] if verdict else []),
        ("ranks", _ranks(plan, mesh)),
        ("folder", f"{start.folder}  (log.txt there has every line)"),
    ]
    return [f"{label:<{_LABEL}}{text}" for label, text in rows]


def _model(inputs: Inputs, plan: Schedule) -> str:
    config = inputs.source.config
    count = config.parameter_count()
    size = f"{count / 1e6:,.0f}M" if count >= 1e7 else f"{count:,}"
    return (
        f"{inputs.source.name}: {size} parameters in "
        f"{config.n_layers} layers {config.dim} wide; computed in {plan.resolved.precision}"
    )


def _data(inputs: Inputs) -> str:
    found, held_out = inputs.training.report, inputs.held_out
    rows = _counted(found.rows, "row")
    if found.examples != found.rows:
        rows = f"{_counted(found.examples, 'example')} of {rows}"
    text = (
        f"{rows}, {found.tokens:,} tokens, {found.supervised_share:.1%} of them "
        f"learnt; the longest {found.longest:,}"
    )
    return text + (f"; {_counted(held_out.report.rows, 'row')} held out" if held_out else "")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _trains(inputs: Inputs) -> str:
    counts, lora = trainable(inputs), inputs.method.adapters(inputs.options.lora)
    what = "every parameter"
    if lora is not None:
        what = f"{lora.title} of rank {lora.rank} on {','.join(lora.targets)}"
    return (
        f"{what}: {counts['trainable_parameters']:,} of {counts['total_parameters']:,} parameters "
        f"({counts['trainable_share']:.2%})"
    )


def _step(plan: Schedule, mesh: Mesh) -> str:
    resolved = plan.resolved
    micro, steps, ranks = resolved.micro_batch, resolved.accumulation, mesh.readers
    optimizer = resolved.engine["optimizer"]
    rate = f"{optimizer['type']} at {optimizer['params']['lr']:g}"
    return (
        f"{micro * steps * ranks:,} packed rows (micro-batch {micro} x {steps} x {ranks} "
        f"rank{'s' if ranks > 1 else ''}); {rate}, "
        f"{resolved.engine.get('scheduler', {}).get('type', 'a constant rate')}"
    )


def _length(inputs: Inputs, plan: Schedule, start: Start) -> str:
    each = plan.epochs.windows_per_epoch
    steps = f"{plan.total_steps:,} step{'s' if plan.total_steps > 1 else ''}"
    text = f"{steps}; {each:,} to an epoch, of {inputs.options.epochs}"
    return text + (f"; goes on after step {start.step:,}" if start.source else "")


def _ranks(plan: Schedule, mesh: Mesh) -> str:
    n = mesh.base_sharers
    return f"{mesh.world_size}: {mesh.title('-')}, ZeRO-{plan.resolved.zero_stage}" + (
        f", base sharded over {n}" if n > 1 else ""
    )
