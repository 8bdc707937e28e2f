"""What an engine's state is made of, at ZeRO-0: there the parameters are their own masters."""

from __future__ import annotations

import torch
from torch import nn

from llama.engine.optimizer_state import OptimizerState


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
