"""What `--checkpointing auto` does without, one failed step after the other."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from llama.adapters.attach import attach, initialise
from llama.assembly import lessening
from llama.assembly.lessening import FEWEST_LOGITS, WORTH, Lessening, WithoutGraphs
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.engine.again import begun_again
from llama.fused.captured import RunCaptured
from llama.fused.keeping import Sizes, choose
from llama.fused.offload import HostInputs
from llama.model.kept import Kept
from llama.model.loss import CHUNK_ELEMENTS
from llama.model.transformer import Transformer
from llama.settings import LoRAOptions
from tests.parity.test_packing import documents
from tests.support.closeness import assert_close, sums_of
from tests.support.model_files import TINY, random_state

BYTES = {Kept.INPUT: 10, Kept.FFN_INPUTS: 60, Kept.ALL: 100}
SIZES = Sizes(BYTES, dict.fromkeys(BYTES, 7))
ROOM = 7 + TINY.n_layers * 100


def choice(room: int) -> list[Kept]:
    return choose(SIZES, TINY.n_layers, room)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    said: list[str] = []
    monkeypatch.setattr(lessening, "note", said.append)
    yield said


def model() -> Transformer:
    made = Transformer(TINY)
    made.load_state_dict(random_state(TINY))
    attach(made, LoRAOptions(4, 8.0, 0.0, ("wq", "wv")))
    initialise(made, 0, torch.device("cpu"))
    made.keep(choice(ROOM))
    return made


def test_each_call_keeps_less_until_the_loss_is_in_small_parts(notes: list[str]) -> None:
    made = model()
    keep_less = Lessening(made, choice, ROOM)
    kept, failures = [made.kept], 0
    while keep_less(failures := failures + 1):
        kept.append(made.kept)
        assert failures < 20, "it ends"
    bytes_kept = [sum(SIZES.kept[level] for level in of) for of in kept]
    parted = bytes_kept.count(min(bytes_kept)) - 1
    assert bytes_kept[:-parted] == sorted(set(bytes_kept), reverse=True)
    assert kept[0] == [Kept.ALL] * TINY.n_layers and kept[-1] == [Kept.INPUT] * TINY.n_layers
    assert made.output.elements == FEWEST_LOGITS == CHUNK_ELEMENTS >> parted
    assert len(notes) == len(kept) - 1 and all("is taken again" in line for line in notes)


def test_recorded_passes_go_first_and_alone(notes: list[str]) -> None:
    """Once a step, where they have served for long: where that does not help, less is kept."""
    made = model()
    captured = RunCaptured(made, {}, HostInputs())
    made.run_model = captured
    before = made.kept
    keep_less = Lessening(made, choice, ROOM)

    def after(passes: int) -> None:
        captured._results = SimpleNamespace(passes=passes)  # type: ignore[assignment]

    after(WORTH)
    assert keep_less(1) and made.kept == before and captured._results is None
    assert "recorded" in notes[-1]
    after(WORTH)
    assert keep_less(2) and made.kept != before and captured._results is None
    after(WORTH - 1)
    middle = made.kept
    assert keep_less(1) and made.kept != middle and captured._results is None, "little use"
    last = made.kept
    assert keep_less(1) and len(notes) == 4, "with nothing recorded, less is kept at once"
    assert made.kept != last or made.output.elements is not None


class Recording(RunCaptured):
    """Whose launched passes have no room beside what was recorded."""

    launched, full = 0, 0

    def step(self, passes: int) -> str:
        if self._results is None:
            self.launched += 1
            self._results = SimpleNamespace(passes=passes)  # type: ignore[assignment]
            return "launched"
        self.full += 1
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_graphs_are_given_up_before_the_run_is(notes: list[str]) -> None:
    """Where nothing less can be kept a launched pass may still fit."""
    made = model()
    made.keep(choice(0))
    made.output.elements = FEWEST_LOGITS
    made.run_model = run = Recording(made, {}, HostInputs())
    keep_less = Lessening(made, choice, 0)
    run.step(3)
    assert begun_again(lambda: run.step(3), keep_less) == "launched"
    assert not run._records and notes[-1].endswith("no longer recorded as CUDA graphs")
    with pytest.raises(torch.OutOfMemoryError):
        begun_again(lambda: run.step(3), keep_less)


@pytest.mark.parametrize("passes, goes_on", [(WORTH, True), (WORTH - 1, False)])
def test_a_run_of_a_fixed_setting_does_without_graphs(
    passes: int, goes_on: bool, notes: list[str]
) -> None:
    """What blocks keep was asked for, and stays; where graphs serve little they are not recorded
    over and over."""
    made = model()
    made.run_model = run = Recording(made, {}, HostInputs())
    before, without = made.kept, WithoutGraphs(made)
    assert begun_again(lambda: run.step(passes), without) == "launched" and not notes
    assert begun_again(lambda: run.step(passes), without) == "launched"
    assert (run.launched, run.full, len(notes)) == (2, 1, 1)
    assert run._records == goes_on and made.kept == before
    assert without(2)
    assert not run._records and not without(3), "nothing is left to do without"


def test_the_loss_in_smaller_parts_is_the_same() -> None:
    made = model()
    batch = model_inputs(make_batch([documents([9, 30, 2, 17])], 0), torch.device("cpu"))
    trained = [p for p in made.parameters() if p.requires_grad]
    found = []
    for elements in (None, 5 * TINY.vocab_size):
        made.output.elements = elements
        loss = made(**batch)
        found.append((loss.detach(), torch.autograd.grad(loss, trained)))
    (whole, whole_gradients), (parted, parted_gradients) = found
    limit = sums_of(4 * 58)
    assert_close(parted, whole, limit)
    for ours, expected in zip(parted_gradients, whole_gradients, strict=True):
        assert_close(ours, expected, limit)
