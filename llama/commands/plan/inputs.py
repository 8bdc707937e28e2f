"""From the options of `plan` to what is planned: the sizes of the model, a job, a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama.assembly.limits import check_examples, check_length, check_tokenizer, degrees_problems
from llama.base.kinds import lacking
from llama.data.packing import PackedRow
from llama.data.prepare import Prepared, Reading
from llama.data.shares import rows_of_epoch
from llama.errors import UserError, raise_if
from llama.kernels.compiled import is_wanted
from llama.methods.kinds import KINDS
from llama.metrics.hardware import NETWORKS, gpu_named
from llama.model.config import ModelConfig
from llama.notes import note
from llama.objectives.kinds import SFT
from llama.planning.job import Job, settings_of
from llama.planning.levels import kept_within
from llama.planning.plan import Plan
from llama.planning.rows import largest_batch, mean_batch
from llama.planning.time import Place
from llama.settings import PlanOptions, checked_plan, deepspeed_json, idle_notes
from llama.settings.sharing import Ranks, sharers
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from llama.weights.open_model import ModelSource, sizes_of
from llama.weights.random_init import RandomReader

_UNKNOWN_STEPS = 1000
"""Of a run whose length nothing says; a schedule's lengths depend on it, and no figure here."""


@dataclass(frozen=True)
class Inputs:
    """What the user gave, read and found right."""

    options: PlanOptions
    deepspeed: dict[str, Any]
    """Empty with --suggest."""
    config: ModelConfig
    place: Place
    packed: Sequence[PackedRow]
    """Of --data."""
    rows: int | None
    """Rows of an epoch."""

    @property
    def world_size(self) -> int:
        return self.options.gpus * self.options.nodes

    @property
    def ranks(self) -> Ranks:
        return Ranks(self.world_size, self.options.gpus)


def read_inputs(options: PlanOptions) -> Inputs:
    """Raises `UserError` with every problem of one stage."""
    problems: list[str] = []
    deepspeed: dict[str, Any] = {}
    try:
        deepspeed = checked_plan(options)
    except UserError as error:
        problems += error.problems
    place = None
    try:
        place = _place(options)
        problems += lacking(options.base, f"--gpu {options.gpu}", place.gpu.capability)
    except UserError as error:
        problems += error.problems
    raise_if(problems)
    assert place is not None
    for line in idle_notes(options):
        note(line)
    config, tokenizer = sizes_of(options.model)
    raise_if(
        [
            *degrees_problems(options, config),
            *KINDS[options.method](options.lora, _shape_of(config, options.model)).misfits(),
        ]
    )
    check_length(options.seq_len, config)
    if not options.data:
        return Inputs(options, deepspeed, config, place, [], options.rows)
    data = _read_data(options, config, tokenizer)
    return Inputs(options, deepspeed, config, place, data.packed, rows_of_epoch(data.shares))


def _shape_of(config: ModelConfig, name: str) -> ModelSource:
    """A model of these sizes whose weights nobody asks for."""
    return ModelSource(name, RandomReader(config), None)


def _place(options: PlanOptions) -> Place:
    if options.network not in NETWORKS:
        raise UserError(
            f"--network: expected one of {', '.join(NETWORKS)}, found {options.network!r}"
        )
    if options.nodes == 1 and options.network != PlanOptions.network:
        raise UserError("--network: has no effect on one node; leave it out, or give --nodes")
    return Place(gpu_named(options.gpu), options.nodes, NETWORKS[options.network])


def _read_data(options: PlanOptions, config: ModelConfig, beside: Path | None) -> Prepared:
    path = options.tokenizer or beside
    if path is None:
        raise UserError(
            f"--data: {options.model} comes without a tokenizer, which says how long the rows are: "
            "give --tokenizer, or leave --data out"
        )
    tokenizer = load_tokenizer(path)
    check_tokenizer(path, tokenizer, config, options.model)
    template = load_template(options.template, tokenizer)
    reading = Reading(
        options.seq_len, options.pack, options.overlong, options.columns, options.data_cache
    )
    found = SFT.prepare(options.data, template, tokenizer, reading)
    check_examples(found.report.source, found.examples, config, tokenizer)
    return found


def plan_of(inputs: Inputs, deepspeed: dict[str, Any], options: PlanOptions) -> Plan:
    """The plan of a run by this checked DeepSpeed JSON; `options` are those of `inputs`, or what a
    suggestion made of them. Raises `UserError` where the GPU lacks the precision."""
    data_parallel = inputs.world_size // options.tensor_parallel
    readers = data_parallel // options.sequence_parallel
    micro_batch, accumulation = deepspeed_json.batch_sizes(deepspeed, readers)
    steps = steps_of(inputs, micro_batch * accumulation * readers)
    resolved = deepspeed_json.resolve(
        deepspeed,
        data_parallel=readers,
        total_steps=steps or _UNKNOWN_STEPS,
        width=inputs.config.dim,
        fp16_supported=True,
        bf16_supported=inputs.place.gpu.bf16,
        method=options.method,
    )
    job = Job(
        inputs.config,
        KINDS[options.method].adapters(options.lora),
        base=options.base,
        seq_len=options.seq_len,
        checkpointing="block" if options.checkpointing == "auto" else options.checkpointing,
        fused=is_wanted(options.compile, True, resolved.precision),
        tensor_parallel=options.tensor_parallel,
        sequence_parallel=options.sequence_parallel,
        data_parallel=data_parallel,
        base_sharers=sharers(options.shard_base, options.tensor_parallel, inputs.ranks),
        **settings_of(resolved),
    )
    mean = job
    if inputs.packed:
        job, mean = (
            replace(job, documents=documents, supervised=supervised)
            for documents, supervised in (
                largest_batch(inputs.packed, micro_batch),
                mean_batch(inputs.packed, micro_batch),
            )
        )
    available = inputs.place.gpu.memory
    if options.checkpointing == "auto":
        job = replace(job, checkpointing=kept_within(job, available))
        mean = replace(mean, checkpointing=job.checkpointing)
    return Plan(job, inputs.place, available, mean, steps)


def steps_of(inputs: Inputs, batch: int) -> int | None:
    """Optimizer steps of a run of batches of so many rows."""
    options, rows = inputs.options, inputs.rows
    by_epochs = None if rows is None else options.epochs * -(-rows // batch)
    known = [steps for steps in (by_epochs, options.max_steps) if steps is not None]
    return min(known, default=None)
