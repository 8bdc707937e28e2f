"""What one rank adds to a sum over tensor-parallel ranks, made so that its way between them is
hidden: some rows are on it while the next are multiplied.

Shapes: T tokens, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llama.base.frozen import FrozenWeight
from llama.fused.factors import Adapted, Hidden
from llama.parallel.sums import Finish


def output_share(
    weight: FrozenWeight,
    adapted: Adapted,
    name: str,
    x_TI: torch.Tensor,
    hidden: Hidden,
    place_TO: torch.Tensor | None,
) -> tuple[torch.Tensor, Finish | None]:
    """What the layer `name` makes of `x`, with what its adapter adds: left in `place`, if there is
    one. With what finishes it, if that is left to do."""
    if place_TO is None or weight.MADE_DENSE:  # it would be made dense anew for each part
        return adapted.add_to(name, weight.times(x_TI, into=place_TO), hidden), None

    def finish(rows: slice) -> None:
        weight.times(x_TI[rows], into=place_TO[rows])
        adapted.add_to(name, place_TO[rows], hidden, rows)

    return place_TO, Finish(finish, x_TI.shape[1])


def input_share(
    weights: Sequence[FrozenWeight], grads: Sequence[torch.Tensor], place_TI: torch.Tensor | None
) -> tuple[tuple[torch.Tensor, ...], Finish | None]:
    """The `g W` of layers with one input: summed by the products themselves where these add, else
    each. The first of them is left in `place`, if there is one. The product of the first layer,
    which is as wide as any, comes last; with what adds it, if that is left to do."""
    found: list[torch.Tensor] = []
    for weight, grad in reversed([*zip(weights[1:], grads[1:], strict=True)]):
        if found and weight.ADDS:
            weight.times_transposed(grad, onto=found[0])
        else:
            found.append(weight.times_transposed(grad, into=None if found else place_TI))
    weight, grad_TO = weights[0], grads[0]
    if not weight.ADDS:
        return (*found, weight.times_transposed(grad_TO)), None
    if place_TI is None or weight.MADE_DENSE:
        weight.times_transposed(grad_TO, onto=found[0])
        return tuple(found), None

    def finish(rows: slice) -> None:
        weight.times_transposed(grad_TO[rows], onto=place_TI[rows])

    return tuple(found), Finish(finish, grad_TO.shape[1])
