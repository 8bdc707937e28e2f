"""How published LLaMA models slow their rotary frequencies down to reach longer texts.

Each scaling is one class: `stretch` gives the frequencies as the model uses them, and
`attention_factor` what cosines and sines are multiplied by. All is computed in float32, in the
order of transformers' `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch  # sizes are read, and settings checked, without it


class RopeScaling(Protocol):
    """Shapes: E head_dim."""

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        ...

    def stretch(self, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
        """From `theta^(-2i/E)`, float32 `[E/2]`, to the frequencies that are used."""
        ...


@dataclass(frozen=True)
class LinearScaling:
    """Every position divided by `factor` (Chen et al., "Position Interpolation", 2023)."""

    factor: float
    attention_factor: float = 1.0

    def stretch(self, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class DynamicScaling:
    """No scaling up to the model's positions; beyond them `theta` would grow with the length of the
    text at hand (Reddit's u/emozilla, 2023). No table holds for all lengths then, so a text that
    goes past the model's positions is refused (`llama.assembly.limits`)."""

    factor: float
    attention_factor: float = 1.0

    def stretch(self, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
        return frequencies


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: long wavelengths divided by `factor`, short ones kept, those between blended; as
    published with the models."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int
    attention_factor: float = 1.0

    def stretch(self, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
        wavelengths = 2 * math.pi / frequencies
        turns = self.original_max_position / wavelengths
        span = self.high_freq_factor - self.low_freq_factor
        keep = ((turns - self.low_freq_factor) / span).clamp(0.0, 1.0)
        return (1 - keep) * frequencies / self.factor + keep * frequencies


@dataclass(frozen=True)
class YarnScaling:
    """Frequencies that turn often within the original positions are kept, those that turn seldom
    divided by `factor`, those between blended along a ramp (Peng et al., "YaRN", 2023, section
    3.2); scores are sharpened through `attention_factor` (section 3.4)."""

    factor: float
    original_max_position: int
    attention_factor: float
    beta_fast: float = 32.0
    """Turns within the original positions from which on a frequency is kept."""
    beta_slow: float = 1.0
    """Turns below which it is divided."""
    truncate: bool = True
    """Whether the ends of the ramp are moved outward to whole frequencies."""

    def stretch(self, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
        half = frequencies.shape[0]
        low, high = (self._index(turns, half, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        steps = frequencies.new_ones(half).cumsum(0) - 1
        divided = ((steps - low) / ((high - low) or 0.001)).clamp(0, 1)
        return frequencies / self.factor * divided + frequencies * (1 - divided)

    def _index(self, turns: float, half: int, theta: float) -> float:
        """Which frequency turns that often within the original positions."""
        return half * math.log(self.original_max_position / (turns * 2 * math.pi)) / math.log(theta)


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """`0.1 mscale ln(factor) + 1`, as section 3.4 of the paper recommends."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
