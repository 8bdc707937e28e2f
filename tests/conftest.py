"""What every test runs under."""

from __future__ import annotations

import torch

# Models here are tiny: with several threads, products spend their time waiting for one another.
torch.set_num_threads(1)
