"""What ranks that share the tokens of a row compute, against one that has all of them.

    torchrun --nproc_per_node 2 -m tests.parity.sequence_steps --out FILE

Each rank writes `FILE.<rank>`. Cases share the processes, whose start is most of the time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from deepspeed.sequence.layer import single_all_to_all

from llama.adapters.sequence import RunOnShare, run_on_share
from llama.assembly.model import build_model
from llama.commands.verify.command import Case, asked_run, run
from llama.data.batches import make_batch, own_part
from llama.engine import dropout_seed, start_processes
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.methods.kinds import method_of
from llama.model.attention import document_attention
from llama.model.documents import Documents
from llama.model.kept import KEPT
from llama.model.traded import Traded
from llama.model.transformer import Transformer
from llama.objectives.kinds import SFT
from llama.parallel.layers import joined, share_of
from llama.parallel.mesh import SINGLE, Mesh, TensorParallel, create_mesh
from llama.parallel.sequence import SequenceParallel, Span
from llama.planning.wire import traded_bytes, trades
from tests.parity.topologies import MODEL, case_of, document, rows_of
from tests.support.closeness import difference
from tests.support.tiny_runs import resolved_json

HEADS = {"as many": (8, 8), "grouped": (8, 4), "fewer kv heads than ranks": (8, 1)}
BOUNDS = {
    "uneven documents": (0, 5, 8, 12, 19),
    "one document": (0, 16),
    "documents of one length": (0, 4, 8),
    "a token": (0, 1),
}
WIDTH = 8


def attended(sequence: SequenceParallel) -> dict[str, float]:
    """How far the output and each gradient are from those of attention on one rank."""
    apart: dict[str, float] = {}
    for name, (heads, kv_heads) in HEADS.items():
        for what, bounds in BOUNDS.items():
            torch.manual_seed(0)
            tokens, own = bounds[-1], sequence.own(bounds[-1])
            qkv = [torch.randn(tokens, n, WIDTH) for n in (heads, kv_heads, kv_heads)]
            weight = torch.randn(tokens, heads, WIDTH)
            mine = [x[own].clone().requires_grad_() for x in qkv]
            whole = [x.requires_grad_() for x in qkv]
            expected = document_attention(*whole, Documents(bounds))
            found = Traded(sequence)(*mine, Documents(bounds))
            (expected * weight).sum().backward()
            (found * weight[own]).sum().backward()
            pairs = [(found, expected[own])]
            pairs += [(a.grad, b.grad[own]) for a, b in zip(mine, whole, strict=True)]  # type: ignore
            each = [difference(*pair) for pair in pairs if len(pair[0])]
            apart[f"{name}, {what}"] = max(each, default=0.0)
    return apart


def as_deepspeed_trades(sequence: SequenceParallel) -> bool:
    """Whether tokens of equal shares come together, and go back, as by DeepSpeed's own exchange."""
    torch.manual_seed(0)
    tokens, own = 4 * sequence.size, sequence.own(4 * sequence.size)
    x = torch.randn(tokens, 8, WIDTH)[own]
    theirs = single_all_to_all(x.unsqueeze(0), 2, 1, 0, sequence.group)
    ours = sequence.all_tokens(x.unflatten(1, (sequence.size, -1)).flatten(2), tokens)
    back = single_all_to_all(theirs, 1, 2, 0, sequence.group)
    same = torch.equal(ours, theirs.squeeze(0).flatten(1))
    return same and torch.equal(sequence.own_tokens(ours, tokens).flatten(1), back[0].flatten(1))


def gradients(mesh: Mesh, device: torch.device) -> dict[str, float]:
    """How far the loss of a packed row, and each gradient of adapters that are not at their
    beginning, lie from those of one process. Dropout is on, blocks are computed again."""
    case = case_of(mesh, 1, "block")
    batch, shares = make_batch(case.rows[:2], stream=0), mesh.sequence_parallel
    whole = _adapted(case, SINGLE, device)
    some = _adapted(case, mesh.tensor_parallel, device)
    run_on_share(some, shares)
    part = own_part(batch, shares)
    losses = []
    for model, seen in ((whole, batch), (some, part)):
        torch.manual_seed(dropout_seed(0, 0, batch.stream))
        loss = SFT.loss(model, seen, device)
        loss.backward()
        losses.append(loss.detach())
    dist.all_reduce(losses[1], group=shares.group)
    apart = {"loss": difference(losses[1], losses[0])}
    expected = {name: p.grad for name, p in whole.named_parameters() if p.requires_grad}
    for name, parameter in some.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=shares.group)
            found = joined(parameter.grad, parameter, mesh.tensor_parallel)
            apart[name] = difference(found, expected[name])  # type: ignore[arg-type]
    assert len(apart) == 1 + len(expected)
    return apart


def _adapted(case: Case, tp: TensorParallel, device: torch.device) -> Transformer:
    """The model with every value of its adapters drawn by its name."""
    model = build_model(case.source, torch.float32, device, tp, case.options.checkpointing)
    method_of(case.options, case.source).prepare(model, 0, device)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shape = method_of(case.options, case.source).shapes()[name]
            generator = torch.Generator().manual_seed(sum(name.encode()))
            drawn = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
            parameter.data.copy_(share_of(drawn, parameter, tp))
    return model.train()


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Within, the bytes that leave this rank in trades."""
    found, sent = {"bytes": 0}, SequenceParallel._sent

    def counting(self: SequenceParallel, x: torch.Tensor, given: Any, taken: Any) -> torch.Tensor:
        to_others = sum(given) - given[self.rank]
        found["bytes"] += to_others * x.shape[1] * x.element_size()
        return sent(self, x, given, taken)

    with patch.object(SequenceParallel, "_sent", counting):
        yield found


def wire(mesh: Mesh, device: torch.device, checkpointing: str) -> dict[str, float]:
    """Bytes that all ranks sent in the trades of five steps, and what docs/scaling.md says."""
    case = case_of(mesh, 1, checkpointing)
    resolved = resolved_json(document(1, 1), mesh.readers, MODEL)
    tokens = {"of batches": 0}
    begin = RunOnShare.__call__

    def begun(self: RunOnShare, *args: Any) -> torch.Tensor:
        tokens["of batches"] += args[3].boundaries[-1]
        return begin(self, *args)

    with counted() as found, patch.object(RunOnShare, "__call__", begun):
        asked_run(case, resolved, mesh, device)
    everyone = torch.tensor(found["bytes"])
    dist.all_reduce(everyone)
    shards, ranks = mesh.tensor_parallel.size, mesh.sequence_parallel.size
    level = KEPT[checkpointing]  # type: ignore[index]
    of_blocks = [trades(level, fused=False, on_output=True)] * MODEL.n_layers
    formula = traded_bytes(MODEL, tokens["of batches"], ranks, shards, of_blocks, 4)
    # The formula is of a rank that has `tokens`: all ranks together have those of the batches.
    return {"sent": int(everyone), "formula": formula * shards * mesh.readers}


def _documents_of_the_share(*args: Any) -> torch.Tensor:
    _, q, k, v, _ = args
    return document_attention(q, k, v, Documents((0, q.shape[0])))


@contextmanager
def _own_place_alone() -> Iterator[None]:
    with patch("llama.adapters.sequence.Span", lambda: _Stubborn()):
        yield


class _Stubborn(Span):
    """Says that the first tokens are this rank's, whichever they are."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, 0 if name == "start" else value)


def _heads_of_the_next(self: SequenceParallel, x: torch.Tensor, *more: Any) -> torch.Tensor:
    return _TRADE(self, x.roll(1, 1) if more[-1] else x, *more)


_TRADE = SequenceParallel.trade
BROKEN: dict[str, Callable[[], Any]] = {
    "nothing": nullcontext,
    "each rank attends to its own tokens": lambda: patch.object(
        Traded, "__call__", _documents_of_the_share
    ),
    "each share drops as the first one does": _own_place_alone,
    "heads come back to other places": lambda: patch.object(
        SequenceParallel, "trade", _heads_of_the_next
    ),
}


def seen(mesh: Mesh, device: torch.device) -> dict[str, bool]:
    """By what was broken, whether `verify` then says that all agrees."""
    case = case_of(mesh, 1, "none")
    options = replace(case.options, precision="float32", steps=2)
    found = {}
    for name, broken in BROKEN.items():
        with broken():
            compared = run(options, document(1, 1), case.source, mesh, device)
        found[name] = all(comparison.agrees for comparison in compared)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tensor_parallel", type=int, default=1)
    given = parser.parse_args()
    device = start_processes()
    together = dist.get_world_size() // given.tensor_parallel
    mesh = create_mesh(given.tensor_parallel, 2, base_sharers=together)
    found: dict[str, Any] = {"gradients": gradients(mesh, device)}
    if given.tensor_parallel == 1:
        found |= _all(mesh, device)
    out = given.out.with_suffix(f".{mesh.rank}")
    out.write_text(json.dumps(found))
    stop_processes()


def _all(mesh: Mesh, device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"attended": attended(mesh.sequence_parallel)}
    found["as DeepSpeed"] = as_deepspeed_trades(mesh.sequence_parallel)
    found["wire"] = {mode: wire(mesh, device, mode) for mode in ("none", "block")}
    found["seen"] = seen(mesh, device)
    found["rows"] = [asdict(r) for r in rows_of(mesh, device, (1, 3), ("block",))]
    found["rows"] += [asdict(r) for r in rows_of(mesh, device, (1,), ("none",), "full")]
    return found


if __name__ == "__main__":
    run_program(main)
