"""`launcher/verify.py`: does this topology train what one process would?

The model's real widths at reduced depth, with random weights, train for a few steps twice: as
asked (the launcher's ranks, the DeepSpeed JSON, tensor parallelism), and on the first rank alone in
float32 by plain torch, with neither DeepSpeed nor shards, on dense weights: where they are held in
fewer bits, what those stand for. The two are compared.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from llama.adapters.attach import fixed_parameters, parameter_groups, trainable_parameters
from llama.adapters.kinds import kind_of
from llama.assembly.device_settings import resolve_here
from llama.assembly.engine import build_engine
from llama.assembly.groups import mesh_of
from llama.assembly.limits import degrees_problems
from llama.assembly.model import build_model, default_device
from llama.base.kinds import KINDS
from llama.commands.verify.report import Comparison, Outcome, compare, table
from llama.data.batches import Epochs, first_windows
from llama.data.packing import PackedRow
from llama.data.types import IGNORE, Example
from llama.engine import dropout_seed, start_processes, with_rates
from llama.engine.state import Tensors
from llama.errors import raise_if
from llama.files.json_text import json_text
from llama.launch.launchers import check_launch
from llama.launch.processes import launched_world_size, stop_processes
from llama.methods.kinds import method_of
from llama.objectives.kinds import SFT
from llama.parallel.agreement import on_every
from llama.parallel.mesh import Mesh
from llama.parallel.sharded import is_sharded
from llama.settings import VerifyOptions, checked_verify, deepspeed_json
from llama.settings.deepspeed_json import Resolved
from llama.weights.as_held import AsHeld
from llama.weights.open_model import ModelSource, open_model
from llama.weights.random_init import RandomReader

WINDOWS_PER_EPOCH = 2.5
"""So that the comparison includes a window with fewer micro-batches than the others."""
NUDGE = 2.0**-21
"""Relative; a float32 is rounded by 2**-24 at most."""


@dataclass(frozen=True)
class Case:
    """What is trained both times."""

    source: ModelSource
    options: VerifyOptions
    rows: list[PackedRow]
    micro_batch: int
    accumulation: int

    def epochs(self, accumulation: int, rank: int, size: int) -> Epochs:
        seed = self.options.seed
        return Epochs(self.rows, self.micro_batch, accumulation, rank, size, seed)


def verify(options: VerifyOptions) -> int:
    """Run `launcher/verify.py`: 0 where the two agree, 1 where they do not."""
    check_launch()
    document = checked_verify(options, launched_world_size())
    device = start_processes()
    try:
        mesh = mesh_of(options)
        source = on_every(mesh, lambda: _opened(options))
        comparisons = run(options, document, reduced(source, options), mesh, device)
    finally:
        stop_processes()
    agree = all(comparison.agrees for comparison in comparisons)
    if mesh.is_main:
        print(table(comparisons), file=sys.stderr if options.json else sys.stdout)
        if options.json:
            verdict = {"agrees": agree, "topology": mesh.as_json()}
            print(json_text(verdict | {"runs": [c.as_json() for c in comparisons]}))
    return 0 if agree else 1


def _opened(options: VerifyOptions) -> ModelSource:
    source = open_model(options.model, default_device())
    misfits = method_of(options, source).misfits()
    raise_if([*degrees_problems(options, source.config), *misfits])
    return source


def reduced(source: ModelSource, options: VerifyOptions) -> ModelSource:
    """The same widths, fewer layers, random weights."""
    config = source.config.with_layers(min(options.layers, source.config.n_layers))
    return replace(source, reader=RandomReader(config, options.seed, default_device()))


def run(
    options: VerifyOptions,
    document: dict[str, Any],
    source: ModelSource,
    mesh: Mesh,
    device: torch.device,
) -> list[Comparison]:
    """The asked run against one process: in float32, where the two should differ by rounding only,
    and then in the precision that the JSON asks for, if that is another."""
    micro_batch, accumulation = deepspeed_json.batch_sizes(document, mesh.readers)
    rows = random_rows(source.config.vocab_size, options, micro_batch * accumulation, mesh)
    case = Case(source, options, rows, micro_batch, accumulation)
    reference = reference_run(case, document, mesh, device)
    comparisons = []
    for config in _precisions(document, options.precision):
        resolved = resolve_here(config, mesh, options.steps, source.config, options.method)
        outcome = asked_run(case, resolved, mesh, device)
        comparisons.append(compare(outcome, reference, resolved, mesh))
    return comparisons


def _precisions(document: dict[str, Any], precision: str) -> Iterator[dict[str, Any]]:
    plain = {k: v for k, v in copy.deepcopy(document).items() if k not in ("fp16", "bf16")}
    plain.pop("scheduler", None)  # a few steps at the full rate say more than a warm-up
    yield plain
    if precision == "half":
        half = {k: v for k, v in document.items() if k in ("fp16", "bf16") and v.get("enabled")}
        if half:
            yield copy.deepcopy(plain) | copy.deepcopy(half)


def random_rows(
    vocab_size: int, options: VerifyOptions, rows_per_rank: int, mesh: Mesh
) -> list[PackedRow]:
    """Rows of two documents of random tokens; lengths and numbers of labels differ throughout, so
    that a mean taken over the wrong thing shows."""
    generator = torch.Generator().manual_seed(options.seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def document(length: int) -> Example:
        ids = torch.randint(vocab_size, (length,), generator=generator).tolist()
        prompt = number(1, length - 1)
        return Example(ids, [IGNORE] * prompt + ids[prompt:], row=1)

    half = max(4, options.seq_len // 2)
    rows = round(WINDOWS_PER_EPOCH * rows_per_rank * mesh.readers)
    return [[document(number(3, half)), document(number(3, half))] for _ in range(max(1, rows))]


def asked_run(case: Case, resolved: Resolved, mesh: Mesh, device: torch.device) -> Outcome:
    """Train as asked. Every rank returns the same outcome."""
    options = case.options
    engine = build_engine(case.source, options, resolved, mesh, device)
    rank, size = mesh.reader, mesh.readers
    initial = _learnt(engine.whole_adapter(), engine.fixed_values(), options)
    steps = []
    for window in first_windows(case.epochs(resolved.accumulation, rank, size), options.steps):
        steps.append(engine.step(window))
    embedding = engine.model.get_parameter("tok_embeddings.weight")
    outcome = Outcome(
        losses=[step.loss for step in steps],
        grad_norms=[step.grad_norm for step in steps],
        adapter=_learnt(engine.whole_adapter(), engine.fixed_values(), options),
        initial=initial,
        skipped=engine.skipped,
        replica_problems=engine.replica_problems(engine.own_values()),
        optimizer_bytes=_of_all_ranks(engine.optimizer_state_bytes(), mesh, device),
        trained=method_of(options, case.source).TRAINED,
        base_sharers=mesh.base_sharers if is_sharded(embedding) else 1,
        rounds_input=KINDS[options.base].ROUNDS_INPUT,
    )
    engine.close()
    return outcome


def _of_all_ranks(value: int, mesh: Mesh, device: torch.device) -> list[int]:
    own = torch.tensor([value], device=device)
    every = [torch.empty_like(own) for _ in range(mesh.world_size)]
    dist.all_gather(every, own)
    return [int(v) for v in every]


def reference_run(
    case: Case, document: dict[str, Any], mesh: Mesh, device: torch.device
) -> Outcome | None:
    """The same steps on the first rank alone, in float32, by plain torch; None on the others, which
    wait. Each window is one forward after another and one backward of their summed mean. They are
    taken once more with weights that are off by some roundings, but where products round anyway."""
    outcome = None
    if mesh.is_main:
        plain = next(_precisions(document, "float32"))
        resolved = resolve_here(
            plain, mesh, case.options.steps, case.source.config, case.options.method
        )
        outcome = _plain_training(case, resolved, mesh.readers, device)
        if not KINDS[case.options.base].ROUNDS_INPUT:
            nudged = _plain_training(case, resolved, mesh.readers, device, NUDGE)
            outcome = replace(outcome, nudged=nudged)
    mesh.wait()
    return outcome


def _plain_training(
    case: Case, resolved: Resolved, readers: int, device: torch.device, nudge: float = 0.0
) -> Outcome:
    """`nudge`: the largest relative change of each weight before the first step."""
    options = case.options
    held = KINDS[options.base]
    reader = AsHeld(case.source.reader, held, options.tensor_parallel, device)
    model = build_model(replace(case.source, reader=reader), torch.float32, device)
    method_of(options, case.source).prepare(model, options.seed, device)
    trainable = trainable_parameters(model)
    parameters = list(trainable.values())
    fixed = {name: p.detach().cpu() for name, p in fixed_parameters(model).items()}
    initial = {name: p.detach().cpu().clone() for name, p in trainable.items()}
    initial = _learnt(initial, fixed, options)
    if nudge:
        _nudge(list(model.parameters()), nudge)
    optimizer = _plain_optimizer(parameter_groups(model), resolved.engine["optimizer"])
    losses, norms = [], []
    epochs = case.epochs(resolved.accumulation * readers, 0, 1)
    for step, window in enumerate(first_windows(epochs, options.steps)):
        supervised = max(1, sum(batch.supervised for batch in window))
        optimizer.zero_grad()
        total = 0.0
        for batch in window:
            torch.manual_seed(dropout_seed(options.seed, step, batch.stream))
            loss = SFT.loss(model, batch, device) / supervised
            loss.backward()
            total += float(loss.detach())
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack([g.double().norm() for g in gradients]).norm()
        limit = resolved.gradient_clipping
        if 0 < limit < float(norm):
            for gradient in gradients:
                gradient.mul_(limit / (float(norm) + 1e-6))
        optimizer.step()
        losses.append(total)
        norms.append(float(norm))
    adapter = {name: p.detach().cpu() for name, p in trainable.items()}
    return Outcome(losses, norms, _learnt(adapter, fixed, options), initial)


@torch.no_grad()
def _nudge(parameters: list[torch.nn.Parameter], most: float) -> None:
    """Of every weight, the frozen too: so all that is computed from them is off by roundings, as it
    is where sums are taken in another order."""
    for seed, parameter in enumerate(parameters):
        generator = torch.Generator(parameter.device).manual_seed(seed)
        change = torch.empty_like(parameter).uniform_(-most, most, generator=generator)
        parameter.addcmul_(parameter, change)


def _learnt(values: Tensors, fixed: Tensors, options: VerifyOptions) -> Tensors:
    """`values` of what trains, less what each began as where the adapter keeps that: in half
    precision such a beginning is rounded by more than a few steps move it."""
    like = kind_of(options.lora).FIXED
    began = {}
    for name, tensor in fixed.items():
        layer, _, own = name.rpartition(".")
        began[f"{layer}.{like[own]}"] = tensor
    return {name: value - began[name] if name in began else value for name, value in values.items()}


def _plain_optimizer(
    groups: list[dict[str, Any]], settings: dict[str, Any]
) -> torch.optim.Optimizer:
    """Adam or AdamW as DeepSpeed reads the JSON: "Adam" decouples the weight decay too, unless
    `adam_w_mode` is false."""
    params = settings["params"]
    decoupled = settings["type"].lower() == "adamw" or params.get("adam_w_mode", True)
    kept = {key: params[key] for key in ("lr", "betas", "eps", "weight_decay") if key in params}
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    # torch's defaults for the decay differ between the two; DeepSpeed hands on what is written.
    return kind(with_rates(groups, params["lr"]), **kept)
