"""Passes as CUDA graphs against the same passes launched one kernel after the other."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from llama.adapters.attach import adapters, switched_off
from llama.assembly.use import summed_loss
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.fused.captured import RunCaptured, add_gradients, capture, serving
from llama.fused.captured_inputs import Mode, Shape, mode_of, shape_of, side_paths
from llama.fused.install import install
from llama.fused.mirrored import Mirrored
from llama.fused.recorded import is_usable, recording
from llama.model.kept import Kept
from llama.model.transformer import Transformer
from llama.train.life import show_life
from tests.gpu.test_kernels_on_gpu import CUDA, GRADIENTS, HALVES, LOSS, difference, model
from tests.parity.test_packing import documents, loss_and_gradients
from tests.support.skips import needs_gpus

pytestmark = [
    pytest.mark.gpu,
    needs_gpus(),
]
BATCHES = [
    [256, 256],
    [9, 300, 2, 170, 31],
    [256, 256],
    [300, 11, 160, 40],
    [5] * 40,
    [3, 250, 60, 190, 5],
    [5] * 38 + [4, 5],
]
"""Lengths of documents: rows of whole tiles, which come twice, and some of nearly one size."""


def inputs(lengths: list[int]) -> dict[str, Any]:
    return model_inputs(make_batch([documents(lengths)], 0), CUDA)


def shapes_of(mode: Mode) -> set[Shape]:
    """Of `BATCHES`."""
    return {
        shape_of(batch["documents"], len(batch["labels"].index_N), mode)
        for batch in map(inputs, BATCHES)
    }


def served_by(recorded: Mapping[Shape, Any], shapes: set[Shape]) -> None:
    """All of `shapes`, by fewer recordings."""
    assert len(recorded) < len(BATCHES)
    assert all(serving(recorded, [shape]) is not None for shape in shapes)


def results(
    made: Transformer, seed: int, batches: list[list[int]] = BATCHES
) -> list[tuple[float, torch.Tensor]]:
    found = []
    for number, lengths in enumerate(batches):
        torch.manual_seed(seed + number)
        batch = inputs(lengths)
        loss, gradients = loss_and_gradients(made, [batch])
        flat = torch.cat([gradients[name].float().flatten() for name in gradients])
        found.append((loss.item(), flat))
    return found


@pytest.mark.parametrize(
    "kept", [Kept.HOST, Kept.INPUT, Kept.MIDDLE, Kept.ALL], ids=lambda k: k.name
)
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_captured_passes_give_what_launched_ones_do(
    dtype: torch.dtype, p: float, kept: Kept, compiled: None
) -> None:
    """With other rows in the same graph, and other masks each time."""
    made = model(dtype, torch.bfloat16)
    made.keep([kept] * len(made.layers))
    for _, adapter in adapters(made):
        vars(adapter)["dropout"] = p
    assert install(made) is None
    expected = results(made, 7)
    assert capture(made) is None
    run = made.run_model
    assert isinstance(run, RunCaptured)
    for _ in range(2):
        found = results(made, 7)
        for (loss, gradients), (loss_as, gradients_as) in zip(found, expected, strict=True):
            apart = abs(loss - loss_as) / abs(loss_as), difference(gradients, gradients_as)
            print(f"\n  {dtype} {p} {kept.name}: {apart[0]:.1e} {apart[1]:.1e}", end="")
            assert apart[0] <= LOSS[dtype] / 5 and apart[1] <= GRADIENTS[dtype]
    served_by(run._recorded, shapes_of(mode_of(made, side_paths(made))))
    if p:  # the masks are those of the seed
        other, same = results(made, 70), results(made, 7)
        assert all(a[0] != b[0] for a, b in zip(other, same, strict=True))


def test_block_inputs_find_room_on_the_host_as_batches_grow(
    compiled: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shape that is recorded when it first comes takes none in the middle of that."""
    made, growing = model(torch.bfloat16, torch.bfloat16), [[9, 200, 40]] * 2 + [[9, 900, 40]]
    growing += [[9, 1900, 70], [9, 200, 40]]
    made.keep([Kept.HOST] * len(made.layers))
    assert install(made) is None
    expected = results(made, 7, growing)
    assert capture(made) is None
    show_life(made)  # as a run does
    found = results(made, 7, growing)
    for (loss, gradients), (loss_as, gradients_as) in zip(found, expected, strict=True):
        assert abs(loss - loss_as) <= LOSS[torch.bfloat16] / 5 * abs(loss_as)
        assert difference(gradients, gradients_as) <= GRADIENTS[torch.bfloat16]
    run: Any = made.run_model
    assert len(run._recorded) == 2 and not capsys.readouterr().err  # the last two


def recorded() -> tuple[Transformer, dict[str, Any]]:
    """A model, and a micro-batch of which it has a graph."""
    made = model(torch.bfloat16, torch.bfloat16)
    assert install(made) is None and capture(made) is None
    batch = inputs([256, 256])
    for _ in range(2):
        made(**batch).backward()
    return made, batch


def test_gradients_are_added_up_and_not_overwritten(compiled: None) -> None:
    """What autograd was given for the first micro-batch is not written to by the second."""
    made, batch = recorded()
    made.zero_grad()
    made(**batch).backward()
    once = [p.grad.float().clone() for p in made.parameters() if p.grad is not None]
    made(**batch).backward()
    twice = [p.grad.float() for p in made.parameters() if p.grad is not None]
    assert once and all(torch.equal(2 * a, b) for a, b in zip(once, twice, strict=True))


def test_gradients_are_added_where_a_pass_is_told(compiled: None) -> None:
    made, batch = recorded()
    made.zero_grad()
    made(**batch).backward()
    trained = [p for p in made.parameters() if p.requires_grad]
    onto = Mirrored(trained)
    add_gradients(made, onto)
    for _ in range(3):  # launched, recorded, repeated
        onto.zero_()
        for _ in range(2):
            onto.add_gradients(made(**batch))
    for part, parameter in zip(onto.parts, trained, strict=True):
        assert parameter.grad is not None and torch.equal(part, 2 * parameter.grad)


def test_activations_that_were_written_over_are_not_gone_back_through(compiled: None) -> None:
    made, batch = recorded()
    first, _second = made(**batch), made(**batch)
    with pytest.raises(RuntimeError, match="another pass"):
        first.backward()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_captured_evaluations_give_what_launched_ones_do(
    dtype: torch.dtype, compiled: None
) -> None:
    """With adapters and without; between passes of training, which go on as they were."""
    made = model(dtype, torch.bfloat16)
    for _, adapter in adapters(made):
        vars(adapter)["dropout"] = 0.2
    assert install(made) is None
    batches = [make_batch([documents(lengths)], 0) for lengths in BATCHES]

    def losses() -> list[float]:
        both = []
        for as_ in (nullcontext(), switched_off(made)):
            with as_:
                both += [summed_loss(made, [batch], CUDA)[0] for batch in batches]
        return both

    expected, trained = losses(), results(made, 7)
    for loss, without in zip(expected, expected[len(batches) :], strict=False):
        assert loss != pytest.approx(without, rel=LOSS[dtype]), "else it would show nothing"
    assert capture(made) is None
    run = made.run_model
    assert isinstance(run, RunCaptured)
    losses()
    assert not run._losses, "nothing before training has been recorded"
    results(made, 7)
    for _ in range(3):
        found = losses()
        for loss, loss_as in zip(found, expected, strict=True):
            print(f"\n  {dtype}: {abs(loss - loss_as) / loss_as:.1e}", end="")
            assert loss == pytest.approx(loss_as, rel=LOSS[dtype] / 5)
        for (loss, _), (loss_as, _) in zip(results(made, 7), trained, strict=True):
            assert loss == pytest.approx(loss_as, rel=LOSS[dtype] / 5)
    on = [path.scale for path in side_paths(made)]
    modes = [Mode(False, (), tuple(scales)) for scales in (on, [0.0] * len(on))]
    recorded = {shape: 1 for shape in run._losses}
    for mode in modes:
        of_mode = {shape: 1 for shape in recorded if shape.mode == mode}
        served_by(of_mode, shapes_of(mode))


def test_an_evaluation_between_the_passes_of_a_step_is_noticed(compiled: None) -> None:
    made, batch = recorded()
    row = make_batch([documents([256, 256])], 0)
    for _ in range(2):
        summed_loss(made, [row], CUDA)
    loss = made(**batch)
    summed_loss(made, [row], CUDA)
    with pytest.raises(RuntimeError, match="another pass"):
        loss.backward()


@pytest.mark.parametrize("breaks", ["raises", "is refused"])
def test_a_recording_that_fails_leaves_the_device_as_it_was(breaks: str) -> None:
    """Its stream, and memory that can be given back."""
    stream, pool = torch.cuda.current_stream(), None
    torch.cuda.empty_cache()
    before, held = torch.cuda.memory_reserved(), []
    for _ in range(3):
        pool = pool if is_usable(pool) else torch.cuda.graph_pool_handle()
        with pytest.raises(RuntimeError), recording(torch.cuda.CUDAGraph(), pool):
            held.append(torch.zeros(2**26, dtype=torch.uint8, device=CUDA))
            if breaks == "raises":
                raise RuntimeError("of its own")
            torch.cuda.synchronize()  # not to be done while it is recorded, which invalidates it
        assert len(held) == 1, "it did not even begin"
        held.clear()
        assert torch.cuda.current_stream() == stream
        assert is_usable(pool) == (breaks == "raises")
    torch.cuda.empty_cache()
    # Of what could not be ended a few numbers for drawing at random stay, in the smallest piece.
    assert torch.cuda.memory_reserved() - before < 2**23
    graph = torch.cuda.CUDAGraph()
    given = torch.ones(4, device=CUDA)
    with recording(graph, pool if is_usable(pool) else torch.cuda.graph_pool_handle()):
        given.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert given.tolist() == [2.0] * 4
