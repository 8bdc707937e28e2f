"""How near two results must be: always relative to the size of what is compared.

Two sums of the same terms in another order, or by another CPU's instructions, differ by rounding:
each addition of float32 rounds by up to half of `EPSILON`, so a sum of n terms, and whatever is
computed by chains of n operations, may be off by about n times `EPSILON` of its largest values. A
limit says in its n why it is what it is. Absolute limits are not used: what is 1e-5 of a number
near 1 is less than one rounding of a number near 200.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

EPSILON = torch.finfo(torch.float32).eps
"""The distance from 1 to the next float32: 1.2e-7."""

Numbers = torch.Tensor | Sequence[float] | float


def difference(found: Numbers, expected: Numbers) -> float:
    """The largest `|found - expected|` over the largest `|expected|`; infinite where nothing was
    expected and something was found, NaN where either holds one."""
    ours, theirs = (torch.as_tensor(x).detach().double() for x in (found, expected))
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    apart = (ours - theirs).abs().max()
    return float(apart / theirs.abs().max()) if apart != 0 else 0.0


def assert_close(found: Numbers, expected: Numbers, limit: float, what: str = "") -> None:
    """`difference` is at most `limit`, so neither holds a NaN."""
    apart = difference(found, expected)
    assert apart <= limit, f"{what}: apart by {apart:.2e} of the largest, at most {limit:.2e}"


def distance(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Between two adapters as one vector each, over the length of the expected one. Adam divides a
    gradient by its own size, so an element whose gradient is mostly rounding may go its own way in
    two runs that are the same: a few such are little of the whole vector, and no error."""
    assert found.keys() == expected.keys()
    ours, theirs = (
        torch.cat([tensors[name].double().flatten() for name in expected])
        for tensors in (found, expected)
    )
    return float((ours - theirs).norm() / theirs.norm())


def sums_of(terms: int) -> float:
    """The limit for chains of `terms` float32 operations, were each rounded the same way."""
    return terms * EPSILON


SMALL_MODEL = 1e-5
"""The limit for a whole model of `TINY`'s size: 84 EPSILON. Its logits are at the end of 13
products one after another, each with sums of at most 192 terms. Roundings, of half an EPSILON at
most, go up and down by chance: in a sum of 192 they come to about sqrt(192) / 2 = 7 EPSILON, in 13
such at the worst to 91, and by chance to far less. Gradients go through twice as many."""
TRAINED = 1e-4
"""The limit for what a few steps of training a small model leave: ten times that of one pass, since
each step begins where rounding has left the weights."""
