"""When passes are recorded and what they leave; the graphs themselves are for a GPU
(tests/gpu/test_captured_on_gpu.py)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from llama.adapters.attach import switched_off, trainable_parameters
from llama.assembly.use import summed_loss
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.data.types import Batch
from llama.fused import captured
from llama.fused.captured_inputs import Inputs, Mode, shape_of
from llama.fused.mirrored import Mirrored
from llama.fused.offload import HostInputs
from llama.model.documents import Documents
from llama.model.transformer import Transformer
from llama.parallel.dropout import Seeds, draw_seed, seeds_from
from llama.parallel.mesh import TensorParallel
from tests.parity.test_packing import documents, loss_and_gradients, trained_model
from tests.support.closeness import assert_close, sums_of
from tests.unit.fused.test_captured_inputs import read_arguments

CPU = torch.device("cpu")


def test_seeds_are_those_that_would_have_been_drawn() -> None:
    torch.manual_seed(5)
    drawn = [draw_seed(CPU).tolist() for _ in range(4)]
    after = int(torch.randint(2**62, ()))
    seeds = Seeds(6, CPU)
    with seeds_from(seeds):
        places = [draw_seed(CPU) for _ in range(4)]
    torch.manual_seed(5)
    seeds.draw()
    assert [place.tolist() for place in places] == drawn
    assert int(torch.randint(2**62, ())) == after


class _Launched:
    """In the place of a recorded pass, which only a GPU has: launched anew each time."""

    def __init__(self, model: Any, run: Any, inputs: Inputs, trained: Any, results: Any, *_: Any):
        self.inputs, self.results = inputs, results
        self.seeds = Seeds(1, CPU)
        self._call = lambda: run(model, *inputs.arguments())
        self._trained = list(trained.values())

    def forward(self) -> torch.Tensor:
        self.results.passes += 1
        with torch.enable_grad():
            self._loss = self._call()
        return self._loss.detach()

    def backward(self, upstream: torch.Tensor) -> None:
        found = torch.autograd.grad(self._loss, self._trained, upstream)
        for place, gradient in zip(self.results.gradients.parts, found, strict=True):
            place.add_(gradient)


def test_a_pass_adds_its_gradients_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which autograd must not take for nothing to do; and a hook on a tensor sees its gradient."""
    monkeypatch.setattr(captured, "Recorded", _Launched)
    monkeypatch.setattr(Inputs, "arguments", read_arguments)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    model = trained_model(0.0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    batch = model_inputs(make_batch([documents([256, 256])], 0), CPU)
    _, expected = loss_and_gradients(model, [batch])
    run = captured.RunCaptured(model, trained, HostInputs())
    model.run_model, run.onto = run, Mirrored(list(trained.values()))
    for number in range(3):  # launched, recorded, repeated
        run.onto.zero_()
        run.onto.add_gradients(2 * model(**batch))
        run.onto.add_gradients(model(**batch))
        for name, found in zip(trained, run.onto.parts, strict=True):
            assert_close(found, 3 * expected[name], sums_of(4 * 512), str(number))
    assert len(run._recorded) == 1
    seen: list[torch.Tensor] = []
    hook = next(iter(trained.values())).register_hook(seen.append)
    run.onto.zero_()
    run.onto.add_gradients(model(**batch))
    assert torch.equal(seen[-1], run.onto.parts[0])  # the first is the stand-in's own
    other = model_inputs(make_batch([documents([9, 30, 2, 17])], 0), CPU)
    for number in range(4):
        if number == 3:
            hook.remove()
        run.onto.add_gradients(model(**other))
        assert len(run._recorded) == (1 if number < 3 else 2), "launched until no hook waits"


class _LaunchedLoss:
    """The same of a pass of an evaluation."""

    made = 0

    def __init__(self, model: Any, run: Any, inputs: Inputs, results: Any, *_: Any) -> None:
        self.inputs, self.results = inputs, results
        self._call = lambda: run(model, *inputs.arguments())
        _LaunchedLoss.made += 1

    def forward(self) -> torch.Tensor:
        self.results.passes += 1
        return self._call()


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> tuple[Transformer, captured.RunCaptured]:
    """A model whose passes are captured, with no graphs, and a training pass that is recorded."""
    monkeypatch.setattr(captured, "Recorded", _Launched)
    monkeypatch.setattr(captured, "RecordedLoss", _LaunchedLoss)
    monkeypatch.setattr(Inputs, "arguments", read_arguments)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    _LaunchedLoss.made = 0
    model = trained_model(0.3)
    run = captured.RunCaptured(model, trainable_parameters(model), HostInputs())
    model.run_model = run
    for _ in range(2):
        model(**model_inputs(batches()[1], CPU)).backward()
    assert len(run._recorded) == 1
    return model, run


ROWS = [[9, 30, 2, 17], [256], [31, 29], [256], [5] * 10]
"""Lengths of documents."""


def batches() -> list[Batch]:
    return [make_batch([documents(lengths)], 0) for lengths in ROWS]


def test_evaluations_are_captured_and_give_the_plain_loss(
    evaluated: tuple[Transformer, captured.RunCaptured],
) -> None:
    """Nothing is dropped, and a model that trains is not taken for one that does not."""
    model, run = evaluated
    plain, mode = trained_model(0.3), Mode(False, (), ())
    bounds = [(Documents(batch.boundaries), batch.supervised) for batch in batches()]
    shapes = {shape_of(*of_batch, mode) for of_batch in bounds}
    assert len(shapes) < len(ROWS)
    losses = []
    for off in (False, False, True, True, False):
        with switched_off(plain) if off else nullcontext():
            expected = summed_loss(plain, batches(), CPU)
        with switched_off(model) if off else nullcontext():
            found = summed_loss(model, batches(), CPU)
        assert found[1] == expected[1] == sum(batch.supervised for batch in batches())
        assert_close(found[0], expected[0], sums_of(4 * 256))
        losses.append(len(run._losses))
    assert losses[1] == len(shapes) and losses[3:] == [2 * len(shapes)] * 2
    assert model.training and len(run._recorded) == 1 and _LaunchedLoss.made == losses[-1]
    with torch.no_grad():
        for batch in batches():  # a pass of neither kind: it drops, and has no backward pass
            model(**model_inputs(batch, CPU))
    assert len(run._losses) == losses[-1] and len(run._recorded) == 1


def test_evaluations_wait_for_the_memory_of_training(
    evaluated: tuple[Transformer, captured.RunCaptured],
) -> None:
    """Which is not there before the first step, and gone where a step ran out of it."""
    model, run = evaluated
    run.forget()
    for _ in range(3):
        summed_loss(model, batches(), CPU)
    assert not run._losses
    for _ in range(2):
        model(**model_inputs(batches()[1], CPU)).backward()
    summed_loss(model, batches(), CPU)
    assert run._losses


def test_an_evaluation_takes_the_memory_of_a_training_pass(
    evaluated: tuple[Transformer, captured.RunCaptured],
) -> None:
    """So that such a pass is not gone back through."""
    model, run = evaluated
    batch = batches()[1]
    for _ in range(2):
        loss = model(**model_inputs(batch, CPU))
        summed_loss(model, [batch], CPU)
    assert run._recorded and run._losses
    with pytest.raises(RuntimeError, match="another pass"):
        loss.backward()


def test_evaluations_leave_training_its_number_of_shapes(
    evaluated: tuple[Transformer, captured.RunCaptured], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "MOST", 1)
    model, run = evaluated
    for _ in range(2):
        summed_loss(model, batches(), CPU)
    assert len(run._losses) == len(run._recorded) == 1
    monkeypatch.setattr(captured, "MOST", 2)
    for _ in range(2):
        model(**model_inputs(batches()[0], CPU)).backward()
    assert len(run._losses) == 1 and len(run._recorded) == 2


def test_memory_that_holds_no_evaluation_ends_their_recording(
    evaluated: tuple[Transformer, captured.RunCaptured], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All graphs go, with the memory that was taken for one more; training's come again."""
    tried: list[int] = []

    class Full(_LaunchedLoss):
        def __init__(self, *_: Any) -> None:
            tried.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(captured, "RecordedLoss", Full)
    model, run = evaluated
    batch = batches()[1]
    expected = summed_loss(trained_model(0.3), [batch] * 4, CPU)
    assert_close(summed_loss(model, [batch] * 4, CPU)[0], expected[0], sums_of(4 * 256))
    assert tried == [1] and not run._recorded
    for _ in range(2):
        model(**model_inputs(batch, CPU)).backward()
    assert run._recorded


class Watched:
    """What a recording is told to leave as it found it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def settle(self) -> None:
        self.said.append("settle")

    def forget(self) -> None:
        self.said.append("forget")

    def held(self) -> None:
        self.said.append("held")


def failing(error: RuntimeError) -> type[_Launched]:
    class Failing(_Launched):
        def __init__(self, *_: Any) -> None:
            raise error

    return Failing


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> captured.RunCaptured:
    """Of a model's passes, none of which has been recorded."""
    monkeypatch.setattr(captured, "Recorded", _Launched)
    monkeypatch.setattr(Inputs, "arguments", read_arguments)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    model = trained_model(0.0)
    run = captured.RunCaptured(model, trainable_parameters(model), HostInputs(), [Watched()])
    model.run_model = run
    run.model = model  # type: ignore[attr-defined]
    return run


def take_a_pass(run: Any, lengths: list[int] = ROWS[0]) -> torch.Tensor:
    batch = model_inputs(make_batch([documents(lengths)], 0), CPU)
    loss = run.model(**batch)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("operation not permitted"), torch.OutOfMemoryError("CUDA out of memory")],
    ids=["refused", "no memory"],
)
def test_a_pass_that_cannot_be_recorded_is_launched(
    recording: captured.RunCaptured,
    error: RuntimeError,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(captured, "Recorded", failing(error))
    losses = [take_a_pass(recording) for _ in range(4)]
    assert capsys.readouterr().err.count("not captured as CUDA graphs: ") == 1
    assert not recording._recorded and recording._pool is None
    assert max(losses) - min(losses) <= sums_of(100) * losses[0]
    assert recording._beside[1].said == ["settle", "forget", "forget"]  # type: ignore


def test_who_can_do_with_less_is_told_of_memory(
    recording: captured.RunCaptured, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(captured, "Recorded", failing(full))
    recording.may_do_with_less = True
    take_a_pass(recording)
    with pytest.raises(torch.OutOfMemoryError):
        take_a_pass(recording)
    monkeypatch.setattr(captured, "Recorded", _Launched)
    take_a_pass(recording)
    assert recording._recorded


OTHER = [40] * 12
"""Documents of another shape than `ROWS[0]`, of its kind."""


def test_a_shape_whose_kernels_are_there_is_recorded_when_it_comes(
    recording: captured.RunCaptured,
) -> None:
    """Launched, its activations would lie beside the memory of the graphs."""
    for count in (0, 1):
        take_a_pass(recording)
        assert len(recording._recorded) == count
    take_a_pass(recording, OTHER)
    assert len(recording._recorded) == 2
    for count in (2, 3):
        take_a_pass(recording, [256])  # one document is attended by another kernel
        assert len(recording._recorded) == count
    recording.forget()
    take_a_pass(recording, OTHER)
    assert not recording._recorded


def test_a_shape_that_cannot_be_recorded_at_once_is_when_it_comes_again(
    recording: captured.RunCaptured,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        take_a_pass(recording)
    monkeypatch.setattr(captured, "Recorded", failing(RuntimeError("operation not permitted")))
    loss = take_a_pass(recording, OTHER)
    monkeypatch.setattr(captured, "Recorded", _Launched)
    for lengths, count in ((OTHER, 2), ([70] * 7, 2), ([70] * 20, 2), ([70] * 20, 3)):
        again = take_a_pass(recording, lengths)
        assert len(recording._recorded) == count
        if lengths == OTHER:
            assert_close(again, loss, sums_of(100))
    assert not capsys.readouterr().err


def test_memory_that_holds_no_further_shape_does_not_end_graphs_that_served(
    recording: captured.RunCaptured,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are let go of, and recorded anew; if they had served too little all passes are launched
    from then on."""
    monkeypatch.setattr(captured, "WORTH", 3)
    for passes in (5, 3):
        for _ in range(passes):
            take_a_pass(recording)
        monkeypatch.setattr(captured, "Recorded", failing(torch.OutOfMemoryError("CUDA: none")))
        take_a_pass(recording, OTHER)
        assert not recording._recorded and bool(capsys.readouterr().err) == (passes == 3)
        monkeypatch.setattr(captured, "Recorded", _Launched)
    for _ in range(3):
        take_a_pass(recording)
    assert not recording._recorded


def test_long_passes_are_launched(
    recording: captured.RunCaptured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "LONG", 255)
    for _ in range(3):
        take_a_pass(recording, [256])
    assert not recording._recorded
    take_a_pass(recording, [255])
    take_a_pass(recording, [255])
    assert recording._recorded


@pytest.mark.parametrize("fails", [False, True])
def test_a_shape_that_another_serves_is_recorded_once_it_came_often(
    recording: captured.RunCaptured, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """And goes on being served where that fails, whatever the reason."""
    monkeypatch.setattr(captured, "OFTEN", 3)
    recording.may_do_with_less = True
    longer, shorter = [300, 780], [200, 780]  # of 8.4 and 7.7 tiles
    for _ in range(2):
        take_a_pass(recording, longer)
    if fails:
        monkeypatch.setattr(captured, "Recorded", failing(torch.OutOfMemoryError("none")))
    for count in (1, 1, 2 - fails, 2 - fails):
        loss = take_a_pass(recording, shorter)
        assert len(recording._recorded) == count
    recording.stop()
    assert_close(loss, take_a_pass(recording, shorter), sums_of(1000))


def test_a_rank_of_a_model_launches_no_other_kind_beside_graphs(recording: Any) -> None:
    """It could not take that pass again by itself."""
    recording._tp = TensorParallel(0, 2)
    for lengths, count in ((ROWS[0], 0), (ROWS[0], 1), ([256], 0), ([256], 1), (ROWS[0], 2)):
        take_a_pass(recording, lengths)
        assert len(recording._recorded) == count
