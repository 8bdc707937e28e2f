"""What `evaluate` makes of a loss."""

from __future__ import annotations

import math

import pytest

from llama.commands.evaluate.report import document_of_losses, lines_of_losses, perplexity


def test_a_loss_beyond_all_bounds_has_a_perplexity() -> None:
    assert perplexity(2.0) == pytest.approx(7.38905609893065)
    assert perplexity(1000.0) == math.inf and math.isnan(perplexity(math.nan))


def test_two_sides_are_laid_beside_each_other() -> None:
    alone = {"loss": 1.0, "perplexity": math.e, "supervised_tokens": 1200}
    assert document_of_losses({"adapter": 1.0}, 1200) == alone
    assert lines_of_losses({"adapter": 1.0}, 1200) == (
        "loss 1.0000, perplexity 2.718, over 1,200 supervised tokens"
    )
    both = {"base": 1.5, "adapter": 1.0}
    base = {"loss": 1.5, "perplexity": math.exp(1.5)}
    assert document_of_losses(both, 1200) == alone | {"base": base, "difference": {"loss": -0.5}}
    assert lines_of_losses(both, 1200).splitlines() == [
        "base        loss 1.5000, perplexity 4.482",
        "adapter     loss 1.0000, perplexity 2.718",
        "difference  -0.5000, over 1,200 supervised tokens",
    ]
