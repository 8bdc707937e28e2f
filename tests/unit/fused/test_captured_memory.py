"""What memory a pass finds beside those that are recorded: of the host, taken before a recording,
and of the device, for passes that are launched."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from llama.adapters.attach import trainable_parameters
from llama.assembly.use import summed_loss
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.fused import captured
from llama.fused.captured_inputs import Inputs
from llama.fused.install import install
from llama.fused.mirrored import Mirrored
from llama.fused.offload import HostInputs, PlainCopies
from llama.model.kept import Kept
from llama.model.transformer import Transformer, run_model
from llama.parallel.mesh import TensorParallel
from llama.train.life import show_life
from tests.parity.test_packing import documents, trained_model
from tests.unit.fused.test_captured import _Launched
from tests.unit.fused.test_captured_inputs import read_arguments

CPU = torch.device("cpu")


class _AsRecorded(_Launched):
    """Goes through the pass when it is made, as a recording does."""

    is_made = False

    def __init__(self, model: Transformer, run: Any, inputs: Inputs, *rest: Any) -> None:
        super().__init__(model, run, inputs, *rest)
        *_, beside = rest
        inputs.ends[1:] = inputs.shape.tokens  # as one document has it
        _AsRecorded.is_made = True
        with torch.enable_grad():
            torch.autograd.grad(self._call(), self._trained)
        _AsRecorded.is_made = False
        self._held = [other.held() for other in beside]


class _Copies(PlainCopies):
    """Says of what sizes memory was taken, and allows neither that nor a wait in a recording."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def room(self, nbytes: int) -> torch.Tensor:
        assert not _AsRecorded.is_made, "memory is taken in a recording"
        self.taken.append(nbytes)
        return super().room(nbytes)

    def finish(self) -> None:
        assert not _AsRecorded.is_made, "a recording waits"


def captured_model(monkeypatch: pytest.MonkeyPatch, kind: type[_Launched]) -> Transformer:
    """As a run has it, which sees a sign of life of every block."""
    monkeypatch.setattr(captured, "Recorded", kind)
    monkeypatch.setattr(Inputs, "arguments", read_arguments)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    model = trained_model(0.0)
    assert install(model) is None
    host = model.run_block.host  # type: ignore[union-attr]
    model.run_model = captured.RunCaptured(model, trainable_parameters(model), host)
    show_life(model)
    return model


def copied_by(model: Transformer) -> _Copies:
    """What makes the copies of a model whose block inputs lie on the host from now on."""
    model.keep([Kept.HOST] * len(model.layers))
    host: HostInputs = model.run_model._host  # type: ignore[union-attr]
    host._copies = copies = _Copies()
    return copies


def take_a_pass(model: Transformer, lengths: list[int]) -> None:
    model(**model_inputs(make_batch([documents(lengths)], 0), CPU)).backward()


def test_host_memory_is_there_before_a_pass_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a larger shape that is recorded when it first comes. What was recorded for the
    smaller one goes, since it would hold its memory beside."""
    model = captured_model(monkeypatch, _AsRecorded)
    run, copies = model.run_model, copied_by(model)
    for _ in range(3):
        take_a_pass(model, [100, 90, 30])
    layers, a_token = len(model.layers), model.config.dim * model.tok_embeddings.weight.itemsize
    assert isinstance(run, captured.RunCaptured)
    assert [shape.tokens for shape in run._recorded] == [256]
    assert copies.taken == [256 * a_token] * layers  # by the pass that was launched
    take_a_pass(model, [200, 150, 90, 60])
    assert [shape.tokens for shape in run._recorded] == [512]
    assert copies.taken[layers:] == [512 * a_token] * layers
    take_a_pass(model, [100, 90, 30])
    assert [shape.tokens for shape in run._recorded] == [512, 256]
    assert len(copies.taken) == 2 * layers  # the larger ones serve


def test_a_longer_pass_that_is_launched_takes_no_host_memory_beside_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What theirs would hold goes before: together they would take twice what was planned."""
    model = captured_model(monkeypatch, _AsRecorded)
    copies, run = copied_by(model), model.run_model
    assert isinstance(run, captured.RunCaptured)
    for _ in range(3):
        take_a_pass(model, [100, 90, 30])
    held = [room for passes in run._recorded.values() for room in passes._held[0]]
    before, made = [weakref.ref(room) for room in held], len(copies.taken)
    del held
    run._at_once = False
    room = copies.room

    def seen(nbytes: int) -> torch.Tensor:
        assert not run._recorded
        return room(nbytes)

    monkeypatch.setattr(copies, "room", seen)
    take_a_pass(model, [200, 150, 90, 60])
    assert len(copies.taken) == made + len(model.layers)
    assert [place() for place in before] == [None] * len(model.layers)


def test_a_loss_that_is_held_holds_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of the micro-batch before, when the next one takes another way. A graph that goes
    is to free its memory."""
    model = captured_model(monkeypatch, _Launched)
    run = model.run_model
    assert isinstance(run, captured.RunCaptured)
    run.onto = Mirrored(list(run._trained.values()))
    batch = model_inputs(make_batch([documents([100, 90, 30])], 0), CPU)
    run.onto.add_gradients(2 * model(**batch))
    loss = model(**batch)
    run.onto.add_gradients(2 * loss)
    (recorded,) = map(weakref.ref, run._recorded.values())
    run.forget()
    assert loss.grad_fn is not None and recorded() is None
    with pytest.raises(RuntimeError, match="gone back already"):
        loss.backward()


def full_beside(monkeypatch: pytest.MonkeyPatch) -> tuple[Transformer, Any, list[bool]]:
    """A model with a recorded pass, what calls it, and of each pass that is launched from now on
    whether there was a recording: then it finds no memory."""
    model = captured_model(monkeypatch, _Launched)
    run: Any = model.run_model
    for _ in range(2):
        take_a_pass(model, [100, 90, 30])
    assert run._recorded
    launched, tried = run._run, []

    def launch(*args: Any) -> torch.Tensor:
        tried.append(bool(run._recorded))
        if tried[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return launched(*args)

    run._run = launch
    return model, run, tried


def test_an_evaluation_that_is_launched_finds_the_memory_of_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, run, tried = full_beside(monkeypatch)
    run._evaluates = False
    model.eval()
    batch = make_batch([documents([50, 20])], 0)
    assert summed_loss(model, [batch], CPU)[0] > 0
    assert tried == [True, False]


def test_a_step_that_is_launched_is_taken_again_by_who_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, run, tried = full_beside(monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        take_a_pass(model, [256])
    assert tried == [True] and run._recorded


@pytest.mark.parametrize("why", ["watched", "long, on ranks of one model"])
def test_a_pass_that_takes_more_is_launched_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    """One that is watched, as that which looks for what is not finite: afterwards passes are
    recorded anew. And a long one on ranks that cannot take it again: they launch all from then on,
    since rows on both sides of that length would have them record again and again."""
    model, run, tried = full_beside(monkeypatch)
    if why == "watched":
        hook = model.layers[0].register_forward_hook(lambda *_: None)
    else:
        hook = nullcontext()
        run._tp = TensorParallel(0, 2)
        monkeypatch.setattr(captured, "LONG", 255)
    with hook:
        take_a_pass(model, [256])
    assert tried == [False]
    run._run = run_model  # which finds memory
    take_a_pass(model, [100, 90, 30])
    assert bool(run._recorded) == (why == "watched")
    assert capsys.readouterr().err.count("no longer recorded") == (why != "watched")
