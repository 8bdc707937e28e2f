"""Model, adapters and optimizer of a run, built the same for `train` and for `benchmark`."""

from __future__ import annotations

import torch

from llama.adapters.sequence import run_on_share
from llama.assembly.lessening import WithoutGraphs
from llama.assembly.memory import keep_what_fits
from llama.assembly.model import build_model
from llama.assembly.sharded import ShardedPlacement, run_sharded
from llama.engine import Engine, ZeRO3Placement
from llama.fused.captured import add_gradients, capture
from llama.fused.captured_decoding import capture_decoding
from llama.fused.install import install
from llama.kernels.compiled import compile_kernels, is_wanted, missing
from llama.methods.kinds import method_of
from llama.notes import note
from llama.parallel.agreement import on_every
from llama.parallel.mesh import Mesh
from llama.parallel.sharded import ShardedBase, Sharers
from llama.settings import BenchmarkOptions, TrainOptions, VerifyOptions
from llama.settings.deepspeed_json import Resolved
from llama.settings.sharing import ALL, WHOLE
from llama.weights.load import Placement
from llama.weights.open_model import ModelSource

LONGEST_ROW = 1024
"""Tokens of a row where the options leave it open."""
Options = TrainOptions | BenchmarkOptions | VerifyOptions
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def build_engine(
    source: ModelSource,
    options: Options,
    resolved: Resolved,
    mesh: Mesh,
    device: torch.device,
) -> Engine:
    """Load the weights, have those parameters train that are to, and hand all to DeepSpeed.
    UserError, on every rank, where any rank finds its weights damaged."""
    fast = _is_fast(options, device, resolved.precision)
    dtype, tp = DTYPES[resolved.precision], mesh.tensor_parallel
    shared = shared_base(source, options, mesh, device)
    placement, kept = _placement(shared, resolved, mesh), options.checkpointing
    model = on_every(
        mesh, lambda: build_model(source, dtype, device, tp, kept, placement, options.base)
    )
    method = method_of(options, source)
    on_every(mesh, lambda: method.prepare(model, options.seed, device))
    run_on_share(model, mesh.sequence_parallel)
    engine = Engine(model, resolved, mesh, device, options.seed)
    plain = None
    if fast:
        plain = install(model)
        capture_decoding(model)
    keep_less = None
    if options.checkpointing == "auto":
        length = options.seq_len or LONGEST_ROW
        to_come = engine.step_bytes() + (shared.most_room_bytes() if shared else 0)
        shape = resolved.micro_batch, length
        keep_less = keep_what_fits(model, *shape, mesh, device, to_come)
    if fast and (plain := plain or capture(model)):
        note(plain)
    captured, chooses = fast and plain is None, keep_less is not None
    if captured and not chooses and tp.size == 1:  # ranks of a model go through a pass together
        keep_less = WithoutGraphs(model)
    if captured or chooses or (fast and shared is not None):
        onto = engine.add_up_gradients(keep_less, looks_for_room=chooses)
        if captured:
            add_gradients(model, onto, may_do_with_less=chooses)
    if shared is not None:
        run_sharded(model, shared)
    return engine


def _is_fast(options: Options, device: torch.device, precision: str) -> bool:
    """Have kernels compiled where that is wanted and can be, and say whether blocks are to run as
    one function each, and passes as graphs: with such kernels, on a GPU."""
    on_cuda = device.type == "cuda"
    if not is_wanted(options.compile, on_cuda, precision):
        return False
    if on_cuda and (lacking := missing()):
        note(f"kernels are not compiled, and small steps wait for the host: {lacking}")
        return False
    compile_kernels()
    return on_cuda


def shared_base(
    source: ModelSource, options: Options, mesh: Mesh, device: torch.device
) -> ShardedBase | None:
    """What is to hold the frozen base, where `--shard_base` has an effect."""
    if options.shard_base == WHOLE:
        return None
    if mesh.base_group is None:
        one = "one data-parallel rank, which keeps all of the base"
        if mesh.data_parallel_size > 1:
            one = f"hosts of {one}: --shard_base {ALL} cuts it over hosts"
        note(f"--shard_base: has no effect on {one}")
        return None
    config = source.config
    sharers = Sharers.of_group(mesh.base_group, device)
    return ShardedBase(sharers, device, config.n_layers, config.tied_embedding)


def _placement(base: ShardedBase | None, resolved: Resolved, mesh: Mesh) -> Placement | None:
    if base is not None:
        return ShardedPlacement(base)
    return ZeRO3Placement(resolved, mesh) if resolved.zero_stage == 3 else None
