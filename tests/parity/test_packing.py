"""Packing changes nothing: documents laid end to end train as each of them would alone."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch

from llama.adapters.attach import adapters, attach, initialise, trainable_parameters
from llama.data.batches import eval_batches, make_batch
from llama.data.feed import model_inputs
from llama.data.packing import Packed, pack_lengths
from llama.data.types import IGNORE, Example
from llama.model.config import LINEARS
from llama.model.kept import Checkpointing
from llama.model.transformer import Supervision, Transformer
from llama.settings import LoRAOptions
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY, random_state

CPU = torch.device("cpu")


def trained_model(
    dropout: float = 0.0,
    checkpointing: Checkpointing = "none",
    targets: tuple[str, ...] = LINEARS,
    start: str = "uniform",
) -> Transformer:
    """With adapters on `targets` whose B is not zero, so that A has a gradient too."""
    model = Transformer(TINY, checkpointing=checkpointing)
    model.load_state_dict(random_state(TINY))
    attach(model, LoRAOptions(4, 8.0, dropout, targets, start=start))
    initialise(model, 0, CPU)
    generator = torch.Generator().manual_seed(1)
    for _, adapter in adapters(model):
        with torch.no_grad():
            adapter.b.normal_(std=0.1, generator=generator)
    return model.train()


def documents(lengths: list[int], seed: int = 0) -> list[Example]:
    dice = random.Random(seed)
    made = []
    for row, length in enumerate(lengths, start=1):
        ids = [dice.randrange(TINY.vocab_size) for _ in range(length)]
        prompt = dice.randrange(1, length)
        made.append(Example(ids, [IGNORE] * prompt + ids[prompt:], row))
    return made


def loss_and_gradients(
    model: Transformer, batches: list[dict[str, Any]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Summed over `batches`."""
    model.zero_grad()
    losses = [model(**batch) for batch in batches]
    torch.stack(losses).sum().backward()
    total = torch.stack(losses).double().sum()
    gradients = {name: p.grad for name, p in trainable_parameters(model).items()}
    return total, {name: grad for name, grad in gradients.items() if grad is not None}


def inputs(rows: list[list[Example]], micro_batch: int) -> list[dict[str, Any]]:
    return [model_inputs(batch, CPU) for batch in eval_batches(rows, micro_batch)]


@pytest.mark.parametrize("lengths", [[9, 30, 2, 17, 5, 23], [12, 12, 12]], ids=["mixed", "uniform"])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_packed_equals_unpacked(lengths: list[int], micro_batch: int) -> None:
    model, examples = trained_model(), documents(lengths)
    lengths = [len(example.input_ids) for example in examples]
    packed = inputs(list(Packed(examples, pack_lengths(lengths, 40))), micro_batch)
    alone = inputs([[example] for example in examples], 1)
    assert len(packed) < len(alone) == len(lengths)
    loss, gradients = loss_and_gradients(model, packed)
    expected, expected_gradients = loss_and_gradients(model, alone)
    assert_close(loss, expected, SMALL_MODEL)
    assert gradients.keys() == expected_gradients.keys() == trainable_parameters(model).keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0.01, name
        assert_close(gradient, expected_gradients[name], SMALL_MODEL, name)


def losses_of_each(model: Transformer, examples: list[Example]) -> list[float]:
    """The loss of each document in one batch of them all."""
    batch = make_batch([examples], 0)
    arguments = model_inputs(batch, CPU)
    found = []
    for start, end in pairwise(batch.boundaries):
        index = (batch.targets != IGNORE).nonzero().squeeze(1)
        index = index[(index >= start) & (index < end)]
        arguments["labels"] = Supervision(index, batch.targets[index])
        with torch.no_grad():
            found.append(model(**arguments).item())
    return found


@pytest.mark.parametrize("lengths", [[9, 30, 2, 17], [12, 12, 12, 12]], ids=["mixed", "uniform"])
def test_a_document_s_loss_depends_on_no_other(lengths: list[int]) -> None:
    """Bit for bit: the shapes stay, so that each row's sums run in the same order."""
    model, examples = trained_model(), documents(lengths)
    others = documents(lengths, seed=1)
    before = losses_of_each(model, examples)
    for changed in range(len(lengths)):
        mixed = [others[i] if i == changed else example for i, example in enumerate(examples)]
        after = losses_of_each(model, mixed)
        assert [a == b for a, b in zip(after, before, strict=True)] == [
            i != changed for i in range(len(lengths))
        ]


@pytest.mark.parametrize("checkpointing", [c for c in get_args(Checkpointing) if c != "none"])
def test_recomputing_changes_nothing(checkpointing: Checkpointing) -> None:
    """Bit for bit, since the same operations run again in the same order. Dropout is on: the masks
    of the backward pass must be those of the forward pass."""
    batches = inputs([documents([9, 30, 2, 17])], 1)
    results = []
    for chosen in ("none", checkpointing):
        model = trained_model(dropout=0.2, checkpointing=chosen)
        torch.manual_seed(3)
        results.append(loss_and_gradients(model, batches))
    (loss, gradients), (again, recomputed) = results
    assert loss == again
    assert gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_dropout_is_felt() -> None:
    """Else the comparison above would say nothing of it."""
    batches = inputs([documents([9, 30, 2, 17])], 1)
    model, losses = trained_model(dropout=0.2), []
    for seed in (3, 4):
        torch.manual_seed(seed)
        losses.append(loss_and_gradients(model, batches)[0])
    assert losses[0] != losses[1]
