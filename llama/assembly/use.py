"""A ready model in use, with its adapter and without: its loss on examples, its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist

from llama.adapters.attach import switched_off
from llama.data.batches import eval_batches, own_part
from llama.data.packing import PackedRow
from llama.data.types import Batch
from llama.model.decoding import Agreed, Sampling, decode_together, own
from llama.model.transformer import Transformer
from llama.objectives.kinds import SFT
from llama.parallel.mesh import Mesh
from llama.tokenizer.base import Tokenizer


@torch.no_grad()
def summed_loss(
    model: torch.nn.Module, batches: Iterable[Batch], device: torch.device
) -> tuple[float, int]:
    """The loss summed over the supervised tokens of `batches`, and their number; no dropout."""
    was_training = model.training
    model.eval()
    total, supervised = 0.0, 0
    for batch in batches:
        total += float(SFT.loss(model, batch, device))
        supervised += SFT.count(batch)
    model.train(was_training)
    return total, supervised


def loss_of_share(
    model: torch.nn.Module,
    rows: Sequence[PackedRow],
    micro_batch: int,
    mesh: Mesh,
    device: torch.device,
    taken: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> tuple[float, int]:
    """`summed_loss` on this rank's share of `rows`, of whose micro-batches `taken` may leave some
    out; ranks that share a model have the same one, and those that share tokens each its own of
    them."""
    batches = taken(eval_batches(rows, micro_batch, mesh.reader, mesh.readers))
    shares = (own_part(batch, mesh.sequence_parallel) for batch in batches)
    return summed_loss(model, shares, device)


def mean_loss(share: tuple[float, int], mesh: Mesh, device: torch.device) -> tuple[float, int]:
    """The mean loss over the supervised tokens of every rank's share, and their number. Every rank
    must call it."""
    both = torch.tensor(share, dtype=torch.float64, device=device)
    dist.all_reduce(both, group=mesh.data_parallel_group)
    return float(both[0] / both[1]), int(both[1])


As = Callable[[], AbstractContextManager[None]]
"""Within it, a model is what it is to be for one side of a comparison."""


def sides(model: Transformer, has_adapter: bool, compare: bool) -> dict[str, As]:
    """What of `model` is asked, by name: it with its adapter, or alone where it has none; with
    `compare` its base first."""
    asked: dict[str, As] = {"adapter" if has_adapter else "model": nullcontext}
    return {"base": partial(switched_off, model), **asked} if compare else asked


def answers(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    agreed: Agreed = own,
    batch: int | None = None,
) -> list[str]:
    """The likeliest text after each of `prompts`, `batch` of them decoded at a time, or all;
    `agreed` as `decode` takes it."""
    was_training = model.training
    model.eval()
    stop = tokenizer.stop_ids
    texts = [""] * len(prompts)
    batch = batch or len(prompts)
    for done in decode_together(model, prompts, max_new_tokens, stop, Sampling(), batch, agreed):
        texts[done.index] = tokenizer.decode(done.tokens)
    model.train(was_training)
    return texts
