"""The arithmetic of a step where it is known, and the bytes of the wire where they were counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from llama.adapters.match import parameter_count
from llama.metrics.speed import step_flops
from llama.model.config import LINEARS, ModelConfig
from llama.model.kept import Kept
from llama.model.presets import PRESETS
from llama.planning.job import Job, Zero
from llama.planning.wire import block_sums, summed_bytes, traded_bytes, trades, traffic
from llama.planning.work import adapter_bytes, work
from llama.settings import LoRAOptions

SEVEN_B = PRESETS["llama-7b"]
QV = LoRAOptions(16, targets=("wq", "wv"))


def test_products_are_those_that_the_benchmark_counts() -> None:
    job = Job(SEVEN_B, micro_batch=2, seq_len=512)
    assert work(job).products == step_flops(SEVEN_B, 1024, 1022)


def test_full_takes_half_as_much_again() -> None:
    """6 for each weight and token in place of 4: the gradient of the weight too."""
    lora, full = (work(Job(SEVEN_B, lora=lora)).products for lora in (QV, None))
    assert full == pytest.approx(1.5 * lora)


def test_recomputing_everything_is_nearly_another_forward_pass() -> None:
    """w2's product alone is not taken again."""
    block = work(Job(SEVEN_B, checkpointing="block", supervised=0))
    rows, columns = SEVEN_B.linear_shape("w2")
    assert block.again == block.products / 2 - 2 * rows * columns * 32 * 1024
    assert work(Job(SEVEN_B, checkpointing="none")).again == 0


def test_the_plain_block_knows_no_levels_between() -> None:
    kept = (Kept.ATTENTION,) * SEVEN_B.n_layers
    plain, fused = (work(Job(SEVEN_B, checkpointing=kept, fused=fused)) for fused in (False, True))
    assert plain.again == fused.again  # wo is taken again in both
    kept = (Kept.MIDDLE,) * SEVEN_B.n_layers
    plain, fused = (work(Job(SEVEN_B, checkpointing=kept, fused=fused)) for fused in (False, True))
    assert plain.again > fused.again


def test_attention_grows_with_the_squares_of_the_documents() -> None:
    whole = work(Job(SEVEN_B, documents=(1024,))).attention
    halves = work(Job(SEVEN_B, documents=(512, 512))).attention
    assert whole == 2 * halves
    assert whole == 3.5 * 2 * 4096 * 1024**2 * 32


@pytest.mark.parametrize("tied", [False, True])
def test_a_shared_base_comes_once_or_twice_in_a_micro_batch(tied: bool) -> None:
    """Its units' own bytes, by their own order of use; the final norm lies on every rank."""
    config = replace(SEVEN_B, tied_embedding=tied)
    alone = Job(config, micro_batch=1, data_parallel=4, accumulation=3)
    more = traffic(replace(alone, base_sharers=4)).total - traffic(alone).total
    vocabulary = config.vocab_size * config.dim
    blocks = config.parameter_count() - vocabulary * (1 if tied else 2) - config.dim
    once = 2 * (2 * vocabulary + 2 * blocks * (config.n_layers - 3) / config.n_layers)
    assert more == pytest.approx(3 * 3 / 4 * once, rel=1e-5)  # a norm is a millionth of it


def test_a_base_shared_in_groups_is_gathered_within_them_alone() -> None:
    """What is exchanged over all ranks is the adapter, however many share a base."""
    whole = Job(SEVEN_B, data_parallel=64, accumulation=2)
    found = {m: traffic(replace(whole, base_sharers=m)) for m in (1, 8, 64)}
    assert not found[1].gathered and not whole.shares_base
    assert {sent.exchanged for sent in found.values()} == {found[1].exchanged}
    assert found[8].gathered / found[64].gathered == pytest.approx((7 / 8) / (63 / 64))


def test_shards_share_the_arithmetic() -> None:
    one, four = (work(Job(SEVEN_B, tensor_parallel=p)) for p in (1, 4))
    assert four.products == one.products / 4 and four.attention == one.attention / 4


COUNTED = ModelConfig(
    dim=256, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=64, ffn_dim=512, vocab_size=512
)


@pytest.mark.parametrize(("level", "count"), [(Kept.ALL, 811_008), (Kept.INPUT, 1_007_616)])
def test_tensor_parallel_sums_are_those_counted_on_two_hosts(level: Kept, count: int) -> None:
    """docs/scaling.md: a block of 192 tokens x 256 in float32, without what is once a model."""
    once = 2 * 192 * 256 * 4
    of_block = block_sums(COUNTED, QV, 192, (level,))
    assert summed_bytes(COUNTED, 192, 192, of_block, 4) - once == count


@pytest.mark.parametrize(
    ("stage", "k", "expected"), [(0, 1, 2), (1, 1, 2), (1, 3, 2), (2, 1, 2), (2, 3, 4)]
)
def test_data_parallel_bytes_are_those_counted_on_two_hosts(
    stage: int, k: int, expected: int
) -> None:
    job = Job(SEVEN_B, data_parallel=2, accumulation=k, zero=Zero(stage=stage))
    adapter = adapter_bytes(SEVEN_B, job.lora or QV, 1, 2)
    assert traffic(job).exchanged == expected * adapter / 2


def test_zero3_gathers_the_weights_twice_a_micro_batch() -> None:
    job = Job(SEVEN_B, data_parallel=2, accumulation=3, zero=Zero(stage=3))
    weights = 2 * SEVEN_B.parameter_count()
    adapter = adapter_bytes(SEVEN_B, QV, 1, 2)
    assert traffic(job).exchanged == (3 * (2 * weights + adapter) + adapter) / 2


def test_one_rank_sends_nothing() -> None:
    assert traffic(Job(SEVEN_B, zero=Zero(stage=3))).total == 0


def test_factors_are_cut_on_the_side_that_the_layer_is() -> None:
    whole = adapter_bytes(SEVEN_B, LoRAOptions(16, targets=LINEARS), 1, 2)
    shares = [adapter_bytes(SEVEN_B, LoRAOptions(16, targets=(name,)), 2, 2) for name in LINEARS]
    assert whole / 2 < sum(shares) < whole


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_an_adapter_of_one_rank_is_all_its_parameters(name: Literal["lora", "dora"]) -> None:
    lora = LoRAOptions(16, targets=LINEARS, kind=name)
    assert adapter_bytes(SEVEN_B, lora, 1, 2) == 2 * parameter_count(SEVEN_B, lora)


def test_the_fixed_half_of_pissa_is_multiplied_too_and_dora_reads_the_weights() -> None:
    plain = work(Job(SEVEN_B, QV))
    pissa = work(Job(SEVEN_B, replace(QV, start="pissa")))
    assert pissa.adapters == 2 * plain.adapters
    dora = work(Job(SEVEN_B, replace(QV, kind="dora")))
    weights = SEVEN_B.n_layers * 2 * SEVEN_B.dim**2  # wq and wv are square in 7B
    assert dora.adapters - plain.adapters == 2 * 16 * weights
    assert dora.element_bytes - plain.element_bytes == 2 * 2 * weights


@pytest.mark.parametrize("ranks", [2, 8])
def test_ranks_that_share_tokens_share_the_work(ranks: int) -> None:
    """Attention too, of which each has its heads; what they trade comes on top."""
    alone = Job(SEVEN_B, seq_len=8192, supervised=8192, checkpointing="block")
    shared = replace(alone, sequence_parallel=ranks, data_parallel=ranks)
    for field in ("products", "again", "attention", "adapters", "element_bytes"):
        assert getattr(work(shared), field) * ranks == getattr(work(alone), field), field
    # q, k, v and the output, thrice: 4 D of each of its tokens, all but its own heads' part.
    each = 3 * 4 * 4096 * (8192 // ranks) * 2
    assert traffic(shared).traded == 32 * each * (ranks - 1) / ranks
    assert traffic(alone).traded == 0


def test_kv_heads_are_traded_once_for_each_rank_that_needs_them() -> None:
    """Of 8 kv heads and 32 query heads as many as ranks."""
    few = PRESETS["llama-3-8b"]
    assert (few.n_heads, few.n_kv_heads, few.n_layers) == (32, 8, 32)
    for ranks, kv_heads in ((4, 8), (8, 8), (16, 16)):
        each = 2 * 2 * (32 + kv_heads) * 128 * 2
        of_blocks = [trades(Kept.ALL, fused=False, on_output=True)] * 32
        found = traded_bytes(few, 1, ranks, 1, of_blocks, 2)
        assert found == 32 * each * (ranks - 1) / ranks
