"""The committed tables are what the script prints; its arithmetic is right where it is known."""

from __future__ import annotations

import pytest

from llama.adapters.match import parameter_count
from llama.model.presets import PRESETS
from llama.settings import LoRAOptions
from tests.support.model_files import ROOT
from tests.support.scaling_table import LAYOUTS, Layout, efficiency_table, traffic_table


@pytest.mark.parametrize("table", [traffic_table, efficiency_table])
def test_docs_hold_what_the_script_prints(table) -> None:
    assert table() in (ROOT / "docs/scaling.md").read_text()


def test_the_adapter_is_counted_as_the_model_counts_it() -> None:
    whole = [layout for layout in LAYOUTS if layout.tensor_parallel == 1]
    assert whole
    for layout in whole:
        count = parameter_count(PRESETS[layout.model], LoRAOptions(16, targets=("wq", "wv")))
        assert layout.adapter == 2 * count


def test_shards_hold_a_whole_a_and_their_part_of_b() -> None:
    """LLaMA-7B: A and B of wq and wv are 16 x 4096 each, in 32 layers of half precision."""
    factor = 2 * 32 * 16 * 4096
    assert Layout("llama-7b", 1, 1, 1).adapter == 4 * factor
    assert Layout("llama-7b", 8, 1, 1).adapter == 2 * factor + 2 * factor // 8
