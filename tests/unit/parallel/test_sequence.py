"""Tokens shared over ranks: what each has, what it drops, what it is given of a batch. What ranks
trade is tried by several processes in tests/parity/test_sequence.py."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from llama.data.batches import make_batch, own_part
from llama.data.feed import model_inputs
from llama.data.types import IGNORE, Example
from llama.parallel.dropout import dropout, keep_mask
from llama.parallel.mesh import SINGLE, TensorParallel
from llama.parallel.sequence import SequenceParallel, Span

CPU = torch.device("cpu")
LENGTHS = (5, 3, 4, 7)


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5, 31, 4096])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_every_token_is_one_rank_s(tokens: int, size: int) -> None:
    ranks = [SequenceParallel(rank, size) for rank in range(size)]
    shares = [range(tokens)[rank.own(tokens)] for rank in ranks]
    assert [token for share in shares for token in share] == [*range(tokens)]
    assert [len(share) for share in shares] == ranks[0].counts(tokens)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("on_cuda", [False, True], ids=["on a CPU", "on a GPU"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_shares_of_tokens_drop_what_one_process_would(
    size: int, shards: int, on_cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of the width they have; and the generators stay in step. A GPU's paths are
    taken here too, their kernels as they are written."""
    monkeypatch.setattr("llama.parallel.dropout.on_cuda", lambda _: on_cuda)
    x = torch.randn(sum(LENGTHS), 48)
    torch.manual_seed(7)
    expected = dropout(x, 0.3, SINGLE, sharded=False)
    after = torch.get_rng_state()
    rows = []
    for rank in range(size):
        own, columns = SequenceParallel(rank, size).own(len(x)), []
        for shard, part in enumerate(x[own].chunk(shards, dim=1)):
            torch.manual_seed(7)
            tp = TensorParallel(shard, shards)
            columns.append(dropout(part, 0.3, tp, shards > 1, Span(own.start, len(x))))
            assert torch.equal(torch.get_rng_state(), after)
        rows.append(torch.cat(columns, dim=1))
    assert torch.equal(torch.cat(rows), expected)


@pytest.mark.parametrize("rows", [40, 200_000])
def test_so_does_a_computed_mask(rows: int) -> None:
    seed = torch.tensor([2**40 + 12345, 0])
    whole = keep_mask(seed, torch.Size((rows, 1)), 0.3, (0, 3))
    share = SequenceParallel(3, 4).own(rows)
    own = keep_mask(seed, torch.Size((share.stop - share.start, 1)), 0.3, (share.start, 3))
    assert torch.equal(own, whole[share]) and 0 < own.sum() < own.numel()


def _batch() -> tuple[list[Example], torch.Tensor]:
    """Documents whose answers begin at their third token, and the targets written out."""
    examples, targets = [], []
    for number, length in enumerate(LENGTHS):
        ids = [100 * number + at for at in range(length)]
        examples.append(Example(ids, [IGNORE, IGNORE, *ids[2:]], row=number))
        targets += [IGNORE, *ids[2:], IGNORE]
    return examples, torch.tensor(targets)


@pytest.mark.parametrize("size", [2, 3, 7, 25])
def test_a_share_of_a_batch_has_the_labels_of_its_own_tokens(size: int) -> None:
    """A label is the next token, which may be another rank's: it is taken before the row is cut."""
    examples, targets = _batch()
    batch = make_batch([examples], stream=3)
    parts = [own_part(batch, SequenceParallel(r, size)) for r in range(size)]
    for name in ("tokens", "positions", "targets"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name))
    assert torch.equal(batch.targets, targets)
    assert sum(part.supervised for part in parts) == batch.supervised == 3 + 1 + 2 + 5
    for part in parts:
        assert (part.stream, part.boundaries) == (3, (0, 5, 8, 12, 19))
        assert [b - a for a, b in pairwise(part.boundaries)] == [*LENGTHS]
        labels = model_inputs(part, CPU)["labels"]
        assert torch.equal(part.targets[labels.index_N], labels.labels_N)
        assert len(labels.labels_N) == part.supervised
