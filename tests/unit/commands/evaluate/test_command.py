"""What `evaluate` makes of a loss."""

from __future__ import annotations

import math

import pytest

from llama.commands.evaluate.command import perplexity


def test_a_loss_beyond_all_bounds_has_a_perplexity() -> None:
    assert perplexity(2.0) == pytest.approx(7.38905609893065)
    assert perplexity(1000.0) == math.inf and math.isnan(perplexity(math.nan))
