"""How fast our training step is, and how much memory it takes: the step itself, as `train` takes
it, on random tokens or on real rows.

A step is timed from the batch on the host to the updated adapters, the device waited for on both
sides. What `train` does between steps (logging, evaluation, saving) is left out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, cast

import torch

from llama.assembly.device_settings import resolve_here
from llama.assembly.engine import build_engine
from llama.assembly.groups import mesh_of
from llama.assembly.limits import check_examples, check_length
from llama.assembly.model import default_device, find_tokenizer
from llama.commands.benchmark.report import arithmetic, machine, speed, table
from llama.data.batches import Epochs, first_windows
from llama.data.prepare import Prepared, Reading, prepare
from llama.data.random_rows import random_rows
from llama.engine import start_processes
from llama.errors import UserError, raise_if
from llama.files.json_text import json_text
from llama.fused.keeping import summary
from llama.kernels.compiled import is_wanted
from llama.launch.launchers import check_launch
from llama.launch.processes import launched_world_size, stop_processes
from llama.methods.kinds import method_of
from llama.metrics.speed import peak_memory_bytes
from llama.model.transformer import Transformer
from llama.parallel.mesh import Mesh
from llama.settings import BenchmarkOptions, check_benchmark, deepspeed_json
from llama.settings.adapters import check_rates
from llama.settings.base import check_base_zero
from llama.settings.deepspeed_json import Resolved
from llama.settings.degrees import readers
from llama.settings.shard_base import check_shard_base
from llama.settings.sharing import Ranks
from llama.tokenizer.templates import load_template
from llama.weights.open_model import ModelSource, open_model

T = TypeVar("T")

_MATRIX = 8192


@dataclass(frozen=True)
class Job:
    """What is timed, read and found right before any weights load."""

    options: BenchmarkOptions
    deepspeed: dict[str, Any]
    source: ModelSource
    data: Prepared | None
    """Of --data; None means random tokens."""

    @property
    def row_length(self) -> int:
        return row_length(self.options)


def benchmark(options: BenchmarkOptions) -> int:
    """Run `launcher/benchmark.py`; returns the exit code."""
    job = read_job(options)
    device = start_processes()
    try:
        mesh = mesh_of(options)
        document = measure(job, mesh, device)
    finally:
        stop_processes()
    if mesh.is_main:
        print(table(document), file=sys.stderr)
        if options.json:
            print(json_text(document))
    return 0


# What is timed


def row_length(options: BenchmarkOptions) -> int:
    """Tokens of a row: by default 256 where they are random, 1024 where examples are packed."""
    return options.seq_len or (1024 if options.data else 256)


def read_job(options: BenchmarkOptions) -> Job:
    """Check options, DeepSpeed JSON, the model's headers and the data. Raises `UserError`."""
    check_launch()
    world_size = launched_world_size()
    problems = check_benchmark(options, world_size)
    if options.memory_limit_gb is not None and not torch.cuda.is_available():
        problems.append("--memory_limit_gb: there is no CUDA device to limit")
    config = deepspeed_config(options)
    if options.deepspeed is not None:
        try:
            file = deepspeed_json.located(options.deepspeed)
            config = deepspeed_json.load(file, [])
            problems += deepspeed_json.check(config, str(file), readers(options, world_size))
            problems += check_rates(options.lora, config, file)
            problems += check_base_zero(options.base, config, file)
        except UserError as error:
            problems += error.problems
    problems += check_shard_base(options, config, options.deepspeed, Ranks.launched(world_size))
    raise_if(problems)
    source = open_model(options.model, default_device())
    return Job(options, config, source, _read_data(options, source))


def deepspeed_config(options: BenchmarkOptions) -> dict[str, Any]:
    """What is run without --deepspeed: as ds_configs/, at a constant rate, one micro-batch."""
    params = {"lr": 1e-3, "weight_decay": 0.0, "torch_adam": True}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": options.batch or (1 if options.data else 4),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": params},
        "zero_optimization": {
            "stage": 1,
            "reduce_bucket_size": 10_000_000,
            "allgather_bucket_size": 10_000_000,
        },
    }
    precision = options.precision or "bf16"
    if precision != "float32":
        config[precision] = {"enabled": True}
    return config


def _read_data(options: BenchmarkOptions, source: ModelSource) -> Prepared | None:
    if not options.data:
        check_length(row_length(options), source.config)
        return None
    tokenizer = find_tokenizer(source, options.tokenizer)
    template = load_template(options.template, tokenizer)
    length = row_length(options)
    reading = Reading(
        length, True, options.overlong, options.columns, options.data_cache, options.rows
    )
    data = prepare(options.data, template, tokenizer, reading)
    print(data.report.text(), file=sys.stderr)
    check_examples(data.report.source, data.examples, source.config, tokenizer)
    return data


def resolve(job: Job, mesh: Mesh) -> Resolved:
    """The DeepSpeed settings for this run's length on this mesh."""
    steps = job.options.warmup + job.options.steps
    resolved = resolve_here(job.deepspeed, mesh, steps, job.source.config, job.options.method)
    for note in resolved.notes if mesh.is_main else ():
        print(note, file=sys.stderr)
    return resolved


def epochs(job: Job, resolved: Resolved, mesh: Mesh, steps: int) -> Epochs:
    """The rows as `train` cuts them into windows: enough random ones for `steps` windows without
    repeating any, or those of the data packed."""
    number = steps * resolved.micro_batch * resolved.accumulation * mesh.readers
    if job.data is None:
        vocabulary = job.source.config.vocab_size
        packed, shares = random_rows(vocabulary, number, job.row_length, job.options.seed), ()
    else:
        packed, shares = job.data.packed, job.data.shares
    micro_batch, accumulation = resolved.micro_batch, resolved.accumulation
    seed = job.options.seed
    return Epochs(packed, micro_batch, accumulation, mesh.reader, mesh.readers, seed, shares)


# Timing


def timed(device: torch.device, work: Callable[[], T]) -> tuple[T, float]:
    """What `work` gives and the seconds it took, the device's own work included."""
    _wait(device)
    started = time.perf_counter()
    result = work()
    _wait(device)
    return result, time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, devices: int = 1) -> float | None:
    """FLOP/s of `devices` such in the product of two random bf16 matrices of 8192 x 8192: the
    median of 10. None on CPU, where it would be the emulation's."""
    if device.type != "cuda":
        return None
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(_MATRIX, _MATRIX, device=device, dtype=torch.bfloat16, generator=generator)
        for _ in range(2)
    )
    seconds = [timed(device, lambda: a @ b)[1] for _ in range(13)][3:]
    return devices * 2 * _MATRIX**3 / statistics.median(seconds)


def limit_memory(gib: float | None, device: torch.device) -> None:
    """Cap what torch's allocator may take on `device`. Raises `UserError` above what it has."""
    if gib is None:
        return
    share = gib * 2**30 / torch.cuda.get_device_properties(device).total_memory
    if share > 1:
        raise UserError(f"--memory_limit_gb: {gib} is more than {device} has")
    torch.cuda.set_per_process_memory_fraction(share, device)


def measure(job: Job, mesh: Mesh, device: torch.device) -> dict[str, Any]:
    """Build, warm up, time each step; the result as one JSON object."""
    options, config = job.options, job.source.config
    limit_memory(options.memory_limit_gb, device)
    resolved = resolve(job, mesh)
    number = options.warmup + options.steps
    windows = first_windows(epochs(job, resolved, mesh, number), number)
    rate = matrix_rate(device, mesh.world_size)
    engine = build_engine(job.source, options, resolved, mesh, device)
    model = cast(Transformer, engine.model)
    memory = {"loading_peak_memory_bytes": reset_peak(device)}
    results = [timed(device, lambda w=window: engine.step(w)) for window in windows]
    steps, seconds = zip(*results[options.warmup :], strict=True)
    memory["peak_memory_bytes"] = peak_memory_bytes(device)
    if device.type == "cuda":
        memory["reserved_memory_bytes"] = torch.cuda.max_memory_reserved(device)
    return {
        **describe(job, resolved, mesh, device),
        **speed(steps, seconds),
        **arithmetic(
            *(config, options.checkpointing, steps, seconds, rate, model.kept),
            weight_gradients=method_of(options, job.source).WEIGHT_GRADIENTS,
        ),
        **memory,
        "kept": summary(model.kept),
        "loss_first": results[0][0].loss,
        "loss_last": steps[-1].loss,
        "skipped_steps": sum(not step.applied for step in steps),
    }


def reset_peak(device: torch.device) -> int:
    """The most memory held so far, counted anew from here on CUDA; a CPU process has one peak."""
    peak = peak_memory_bytes(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return peak


def describe(job: Job, resolved: Resolved, mesh: Mesh, device: torch.device) -> dict[str, Any]:
    """What was run, on what."""
    options = job.options
    return {
        "model": options.model,
        "data": [str(path) for path in options.data] or None,
        "columns": dict(options.columns) or None,
        "micro_batch": resolved.micro_batch,
        "accumulation": resolved.accumulation,
        "seq_len": job.row_length,
        "precision": resolved.precision,
        "checkpointing": options.checkpointing,
        "compile": is_wanted(options.compile, device.type == "cuda", resolved.precision),
        "method": options.method,
        "lora": asdict(options.lora) if options.method == "lora" else None,
        "base": options.base,
        "shard_base": options.shard_base,
        "deepspeed": resolved.engine,
        "topology": mesh.as_json(),
        "memory_limit_gb": options.memory_limit_gb,
        **machine(device),
    }
