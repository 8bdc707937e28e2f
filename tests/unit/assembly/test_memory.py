"""`--checkpointing auto`: a plan by arithmetic, tried where a rank can run alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llama.adapters.attach import attach, initialise, trainable_parameters
from llama.assembly import memory
from llama.assembly.lessening import LESS
from llama.assembly.memory import available_bytes, keep_what_fits
from llama.model.kept import Kept
from llama.model.transformer import Transformer
from llama.parallel.mesh import SINGLE, Mesh
from llama.parallel.sequence import SequenceParallel
from llama.settings import LoRAOptions
from tests.support.model_files import TINY, random_state

CPU = torch.device("cpu")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    group = dist.group.WORLD
    assert group is not None
    yield Mesh(0, 1, SINGLE, 0, 1, group)
    dist.destroy_process_group()


def model() -> Transformer:
    made = Transformer(TINY, checkpointing="auto")
    made.load_state_dict(random_state(TINY))
    attach(made, LoRAOptions(4, 8.0, 0.1, ("wq", "wv")))
    initialise(made, 0, CPU)
    return made


def test_with_room_nothing_is_computed_again(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**30)
    made = model()
    assert made.kept == [Kept.INPUT] * TINY.n_layers
    keep_what_fits(made, 2, 16, mesh, CPU, 1000)
    assert made.kept == [Kept.ALL] * TINY.n_layers


def test_without_room_each_block_is(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**16)
    made = model()
    keep_what_fits(made, 2, 16, mesh, CPU, 1000)
    assert made.kept == [Kept.INPUT] * TINY.n_layers


def test_half_of_the_free_memory_is_shared_by_the_ranks_of_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 1000))
    monkeypatch.setattr(memory, "cgroup_room", lambda: None)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available_bytes(CPU) == 4096 * 1000 // 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_bytes(CPU) == 4096 * 1000 // 8


@pytest.mark.parametrize(("room", "least"), [(1000, 1000), (4096 * 1000 + 1, 4096 * 1000), (0, 0)])
def test_a_control_group_may_leave_less_than_the_machine_has(
    room: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 1000))
    monkeypatch.setattr(memory, "cgroup_room", lambda: room)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_bytes(CPU) == least // 2 // 2


def test_what_the_optimizer_is_still_to_take_is_left_free(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**30)
    made = model()
    keep_what_fits(made, 2, 16, mesh, CPU, 2**30 - 2**16)
    assert made.kept == [Kept.INPUT] * TINY.n_layers
    keep_what_fits(made, 2, 16, mesh, CPU, 0)
    assert made.kept == [Kept.ALL] * TINY.n_layers


def test_a_trial_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    assert memory._fits(made, 2, 16, 1000, CPU)
    for name, parameter in made.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    assert trainable_parameters(made)


def test_a_plan_that_does_not_fit_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial runs out of memory while every block keeps all."""
    shares: list[int] = []
    made = model()

    def plan(sizes: object, blocks: int, available: int) -> list[Kept]:
        shares.append(available)
        kept = max(0, blocks - len(shares) + 1)
        return [Kept.INPUT] * (blocks - kept) + [Kept.ALL] * kept

    def out_of_memory(*args: object) -> torch.Tensor:
        if made.kept.count(Kept.ALL) >= TINY.n_layers:
            raise torch.OutOfMemoryError
        return next(p for p in made.parameters() if p.requires_grad).sum()

    monkeypatch.setattr(memory, "choose", plan)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**9)
    monkeypatch.setattr(memory, "_least", lambda value, device: int(value))
    monkeypatch.setattr(made, "forward", out_of_memory)
    real_grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda loss, of: real_grad(loss, of, allow_unused=True)
    )
    monkeypatch.setattr(memory, "_fits", _on_cpu(memory._fits))
    mesh = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]
    keep_what_fits(made, 2, 16, mesh, torch.device("cuda"), 1000)
    assert made.kept.count(Kept.ALL) == TINY.n_layers - 1
    assert shares[1] == pytest.approx(shares[0] * LESS) and len(shares) == 2


def test_the_host_has_the_inputs_of_a_ranks_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that two ranks share: half of them each."""
    each = 2 * 16 // 2 * TINY.dim * 4
    monkeypatch.setattr(memory, "choose", lambda *_: [Kept.HOST] * TINY.n_layers)
    monkeypatch.setattr(memory, "_least", lambda value, device: int(value))
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**9)
    monkeypatch.setattr(memory, "OF_HOST", 1)
    mesh = Mesh(0, 2, SINGLE, 0, 1, None, sequence_parallel=SequenceParallel(0, 2))  # type: ignore[arg-type]
    for free, on_host in ((TINY.n_layers * each, TINY.n_layers), (TINY.n_layers * each - 1, 1)):
        made = model()
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert keep_what_fits(made, 2, 16, mesh, CPU, 0) is None
        assert made.kept.count(Kept.HOST) == on_host


def _on_cpu(fits: object) -> object:
    return lambda model, rows, length, states, device: fits(model, rows, length, states, CPU)  # type: ignore[operator]
