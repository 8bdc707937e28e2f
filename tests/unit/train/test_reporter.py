"""What a run says of its losses."""

from __future__ import annotations

import json
import math

from llama.files.json_text import json_text
from llama.train.reporter import shown


def test_a_loss_is_shown_alike_before_and_after_it_went_through_a_checkpoint() -> None:
    for loss in (0.5, math.nan):
        assert shown(json.loads(json_text(loss))) == shown(loss)
    assert shown(0.5) == "0.5000"
