"""Arguments for every kernel that has a form in Triton, to hold the two against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

P = 0.2
EPS = 1e-5


def calls(
    dtype: torch.dtype,
    device: torch.device,
    tokens: int = 7,
    width: int = 96,
    vocabulary: int = 5000,
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Name of a kernel and arguments of one call."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    x, update, grad = (random(tokens, width) for _ in range(3))
    weight = random(width)
    drawn_from = (2**61 + 12345, 0), (77, 3), (2**40 + 9, 600_000)
    seeds = tuple(torch.tensor(seed, device=device) for seed in drawn_from)
    paths = tuple(random(tokens, width) for _ in range(3))
    scale = (x.float().square().mean(dim=-1, keepdim=True) + EPS).rsqrt()
    yield "norm", (x, weight, EPS)
    yield "rms_norm", (x, weight, EPS)
    yield "rms_norm_backward", (grad, x, weight, scale)
    yield "add_norm", (x, update, weight, EPS)
    yield "norm_backward", (update, grad, x, weight, EPS)
    for number in (1, 2, 3):
        drawn = seeds[:number]
        yield "norm_dropped", (x, weight, EPS, drawn, P)
        yield "only_norm_dropped", (x, weight, EPS, drawn, P)
        yield "norm_backward_dropped", (update, grad, x, weight, EPS, paths[:number], drawn, P)
        yield "dropped_each", (x, drawn, P)
    yield "dropped", (x, seeds[0], P, (3 * width, width))
    yield "swiglu", (x, update)
    yield "swiglu_backward", (grad, x, update)
    yield "swiglu_backward_", (grad, x, update)
    q, k = random(tokens, 6, 20), random(2, tokens, 20).transpose(0, 1)
    cos, sin = random(tokens, 1, 20), random(tokens, 1, 20)
    yield "rotate", (k, cos, sin)
    yield "rotate_both", (q, k, cos, sin)
    labels = torch.randint(-1, vocabulary, (tokens, 1), generator=generator).to(device)
    labels[:2] = torch.tensor([[-1], [vocabulary - 1]], device=device)
    yield "losses_and_gradient", (3 * random(tokens, vocabulary), labels)


def apart(found: Any, expected: Any) -> float:
    """The largest relative difference of the tensors that two calls gave."""
    pairs = zip(_tensors(found), _tensors(expected), strict=True)
    return max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        for a, b in pairs
    )


def own(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the tensors, for a function that writes to them; laid out as they are."""
    return tuple(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args)


def _tensors(value: Any) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
