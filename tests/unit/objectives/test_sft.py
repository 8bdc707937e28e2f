"""What supervised fine-tuning sums and counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llama.data.batches import make_batch
from llama.data.types import IGNORE, Example
from llama.model.documents import Documents
from llama.model.transformer import Transformer
from llama.objectives.kinds import KINDS, SFT
from tests.support.model_files import TINY, random_state


def test_the_sum_is_of_the_supervised_tokens_and_the_count_is_theirs() -> None:
    model = Transformer(TINY)
    model.load_state_dict(random_state(TINY))
    ids = torch.randint(TINY.vocab_size, (9,), generator=torch.Generator().manual_seed(0)).tolist()
    labels = [IGNORE] * 4 + ids[4:]
    batch = make_batch([[Example(ids, labels, 1)]], 0)
    assert SFT is KINDS["sft"] and SFT.count(batch) == 5
    with torch.no_grad():
        found = SFT.loss(model, batch, torch.device("cpu"))
        logits = model(torch.tensor(ids), torch.arange(9), Documents((0, 9)))
    expected = F.cross_entropy(logits[3:-1], torch.tensor(ids[4:]), reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)  # two ways to sum float32
