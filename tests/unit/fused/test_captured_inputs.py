"""What is put into a graph's tensors computes what the micro-batch itself does, and how many graphs
serve how many micro-batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.fused.captured import serving
from llama.fused.captured_inputs import (
    IGNORED,
    Inputs,
    Mode,
    Shape,
    mode_of,
    rounded,
    shape_of,
    shapes_of,
)
from llama.model.documents import Documents
from llama.model.kept import Kept
from tests.parity.test_packing import documents, loss_and_gradients, trained_model
from tests.support.closeness import assert_close, sums_of

CPU = torch.device("cpu")


def test_sizes_are_rounded_up_by_little() -> None:
    for size in range(1, 20_000, 7):
        room = rounded(size)
        assert size <= room and room % 128 == 0
        assert room - size < max(128, size / 8)


def test_one_graph_serves_what_is_nearly_alike() -> None:
    bounds = [(0, 900), (0, 400, 1000), (0, 10, 20, 930)]  # of 7.1, 7.8 and 7.3 tiles
    modes = [Mode(True, (kept,), (2.0,)) for kept in Kept]
    others = [Mode(True, modes[0].kept, (0.0,)), Mode(False, (), (2.0,)), Mode(False, (), (0.0,))]
    assert len({shape_of(Documents(b), 300, modes[0]) for b in bounds}) == 1
    shapes = {shape_of(Documents(bounds[0]), 300, mode) for mode in (*modes, *others)}
    assert len(shapes) == len(Kept) + len(others)
    plain, other = (Documents((0, size, 2 * size)) for size in (512, 500))
    plain, other = (shape_of(documents, 998, modes[0]) for documents in (plain, other))
    assert (plain.uniform, plain.documents, plain.longest) == (True, 2, 512)
    assert (other.uniform, other.documents, other.longest) == (False, 16, 1024)


PLACED = Inputs.arguments


def read_arguments(inputs: Inputs) -> tuple[Any, ...]:
    """Those of a pass. On a GPU it reads the bounds from the tensor."""
    tokens, positions, documents, *rest = PLACED(inputs)
    if not inputs.shape.uniform:
        documents = Documents(tuple(dict.fromkeys(inputs.ends.tolist())))
    return tokens, positions, documents, *rest


@pytest.mark.parametrize("lengths", [[9, 30, 2, 17], [256], [5] * 40], ids=str)
def test_a_filled_up_micro_batch_has_the_same_loss_and_gradients(lengths: list[int]) -> None:
    """Whatever lay there before."""
    model = trained_model(0.0)
    batch = model_inputs(make_batch([documents(lengths)], 0), CPU)
    shape = shape_of(batch["documents"], len(batch["labels"].index_N), mode_of(model, []))
    inputs = Inputs(shape, CPU)
    inputs.tokens_T.random_(0, 16)
    inputs.labels_N.fill_(3)
    inputs.fill(**batch)
    assert int((inputs.labels_N != IGNORED).sum()) == len(batch["labels"].index_N)
    tokens, positions, bounds, labels, *_ = read_arguments(inputs)
    filled = {"tokens_T": tokens, "positions_T": positions, "documents": bounds, "labels": labels}
    (loss, gradients), (as_is, gradients_as_is) = (
        loss_and_gradients(model, [given]) for given in (filled, batch)
    )
    limit = sums_of(4 * sum(lengths))
    assert_close(loss, as_is, limit)
    for name, expected in gradients_as_is.items():
        assert_close(gradients[name], expected, limit)


@pytest.mark.parametrize("lengths", [[200] * 15, [200] * 16, [130], [2, 1030], [300] * 70], ids=str)
def test_documents_that_fill_up_are_no_longer_than_the_others_may_be(lengths: list[int]) -> None:
    """And are as many as there is room for, however much is left."""
    batch = model_inputs(make_batch([documents(lengths)], 0), CPU)
    shape = shape_of(batch["documents"], len(batch["labels"].index_N), Mode(True, (), ()))
    inputs = Inputs(shape, CPU)
    inputs.fill(**batch)
    ends = inputs.ends.tolist()
    assert len(ends) == shape.documents + 1 and ends[-1] == shape.tokens
    found = [b - a for a, b in pairwise(ends)]
    assert found[: len(lengths)] == lengths
    assert max(found) <= shape.longest and min(found) >= 0


def recorded_of(micro_batches: list[tuple[list[int], int]]) -> dict[Shape, int]:
    """Which shapes are recorded of micro-batches, by their bounds and the number of supervised
    positions, and at which of them each."""
    recorded: dict[Shape, int] = {}
    for number, (bounds, supervised) in enumerate(micro_batches):
        shapes = list(shapes_of(Documents(bounds), supervised, Mode(True, (), ())))
        if serving(recorded, shapes) is None:
            recorded[shapes[0].with_room_of(recorded)] = number
    return recorded


def test_packed_rows_of_one_kind_have_few_shapes() -> None:
    """Rows of short answers, 64 of them in a micro-batch or 65, of which about half is learnt."""
    generator, batches = torch.Generator().manual_seed(0), []
    for _ in range(60):
        lengths = torch.randint(40, 216, (80,), generator=generator).tolist()
        bounds = [0]
        while bounds[-1] + lengths[-1] <= 8192:
            bounds.append(bounds[-1] + lengths.pop())
        batches.append((bounds, int(0.51 * bounds[-1])))
    recorded = recorded_of(batches)
    assert len(recorded) <= 3 and max(recorded.values()) < 10
    assert not any(shape.serves(replace(shape, tokens=2 * shape.tokens)) for shape in recorded)


def test_instruction_rows_soon_have_all_their_shapes() -> None:
    """Some short and some five times as long, of which a quarter to three quarters are learnt, and
    now and then a micro-batch that is not full."""
    generator, batches = torch.Generator().manual_seed(1), []
    for number in range(60):
        longest = (200, 500)[number % 3 == 0]
        lengths = torch.randint(30, longest, (300,), generator=generator).tolist()
        bounds, most = [0], 8192 if number % 7 else 7500
        while bounds[-1] + lengths[-1] <= most:
            bounds.append(bounds[-1] + lengths.pop())
        share = torch.empty(()).uniform_(0.25, 0.75, generator=generator).item()
        batches.append((bounds, int(share * bounds[-1])))
    recorded = recorded_of(batches)
    assert len(recorded) <= 8 and max(recorded.values()) < 20


def test_a_longer_shape_serves_what_is_nearly_as_long() -> None:
    mode = Mode(True, (), ())
    long, short, shortest = (Documents((0, 100, size)) for size in (8100, 7300, 6900))
    recorded = {shape_of(long, 4000, mode): 0}
    assert serving(recorded, list(shapes_of(short, 3700, mode))) == 0
    assert serving(recorded, list(shapes_of(shortest, 3500, mode))) is None
    rows = Documents(range(0, 7681, 512))
    assert len(list(shapes_of(rows, 4000, mode))) == 1, "rows of one length are not filled up"


@pytest.mark.parametrize("lengths", [[200] * 30, [900, 70, 3000], [3] * 200], ids=str)
def test_a_micro_batch_fits_into_every_shape_that_serves_it(lengths: list[int]) -> None:
    batch = model_inputs(make_batch([documents(lengths)], 0), CPU)
    bounds, supervised = batch["documents"], len(batch["labels"].index_N)
    other = shape_of(Documents(range(0, 8000, 25)), supervised, Mode(True, (), ()))
    for found in shapes_of(bounds, supervised, Mode(True, (), ())):
        for shape in (found, found.with_room_of([other])):
            assert shape == found or shape.serves(found)
            inputs = Inputs(shape, CPU)
            inputs.fill(**batch)
            ends = inputs.ends.tolist()
            assert len(ends) == shape.documents + 1 and ends[-1] == shape.tokens
            sizes = [b - a for a, b in pairwise(ends)]
            assert max(sizes) <= shape.longest and min(sizes) >= 0
