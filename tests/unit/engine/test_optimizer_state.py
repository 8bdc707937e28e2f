"""What an engine's state is made of, at ZeRO-0: there the parameters are their own masters."""

from __future__ import annotations

import torch
from torch import nn

from llama.engine.optimizer_state import Held, OptimizerState


def test_the_state_is_a_copy() -> None:
    """It is written while training goes on: shared memory would tear a checkpoint, unseen."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    state = OptimizerState({"a": parameter}, optimizer, 0)

    def step() -> None:
        parameter.grad = torch.ones(3)
        optimizer.step()

    step()
    taken = [state.masters()["a"], state.moments("exp_avg")["a"], state.moments("exp_avg_sq")["a"]]
    before = [tensor.clone() for tensor in taken]
    step()
    assert all(map(torch.equal, taken, before))
    assert not torch.equal(state.masters()["a"], before[0])


def test_each_group_keeps_the_rate_of_its_own() -> None:
    """A resumed run goes on at the rates that the schedule had set, group by group."""

    def made(rates: tuple[float, float]) -> tuple[OptimizerState, torch.optim.Optimizer]:
        first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
        groups = [
            {"params": [p], "lr": rate} for p, rate in zip((first, second), rates, strict=True)
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        return OptimizerState({"a": first, "b": second}, optimizer, 0), optimizer

    state, _ = made((0.1, 1.6))
    resumed, optimizer = made((0.5, 0.5))
    moments = {key: state.moments(key) for key in ("exp_avg", "exp_avg_sq")}
    resumed.load(Held(state.masters(), moments), state.counters())
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.6]
