"""Plans of jobs that differ in one thing; `tests/parity/test_plan.py` holds them to real steps."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from llama.errors import UserError
from llama.fused.captured import LONG
from llama.model.config import LINEARS, ROW_PARALLEL
from llama.model.kept import Kept
from llama.model.presets import PRESETS
from llama.parallel.shares import FLAT_ALIGNMENT
from llama.parallel.sums import ROWS
from llama.planning import levels
from llama.planning.fit import largest_micro_batch, largest_seq_len
from llama.planning.job import Job, Zero, host_bytes
from llama.planning.levels import kept_within, sizes_of
from llama.planning.memory import NAMES, Memory, memory
from llama.planning.trace import Traced, trace
from llama.settings import LoRAOptions
from tests.support.model_files import ROOT

SMALL = replace(PRESETS["smollm2-135m"], n_layers=3, n_heads=8, n_kv_heads=4, vocab_size=4096)
ZERO = Zero(1, reduce_bucket=1000)
JOB = Job(SMALL, LoRAOptions(rank=4), zero=ZERO, micro_batch=2, seq_len=128)
CUT_UP = Zero(3, 1000, prefetch=1000, persistent=0, max_live=1000, max_reuse=1000)
NORMS_WHOLE = replace(CUT_UP, persistent=1000)
QV = LoRAOptions(rank=4, targets=("wq", "wv"))
GIB = 2**30


def plan(**changes: Any) -> Memory:
    return memory(replace(JOB, **changes))


def test_terms_add_up_and_each_is_explained() -> None:
    found = plan()
    assert sum(term.bytes for term in found.terms) == found.peak_bytes < found.used_bytes
    assert {term.name for term in found.terms} <= set(NAMES)
    assert all(term.why and term.bytes for term in (*found.terms, *found.beside))
    assert plan(device="cpu").used_bytes == plan(device="cpu").peak_bytes


def test_weights_are_those_of_the_model() -> None:
    base = SMALL.parameter_count()
    assert plan(device="cpu").bytes_of("weights") == 2 * base
    assert plan(device="cpu", precision="fp32").bytes_of("weights") == 4 * base
    adapters = 4 * SMALL.n_layers * (576 + 8 * 72 + 576 + 4 * 72)
    assert plan(device="cpu").bytes_of("trained") - 2 * adapters <= 2 * FLAT_ALIGNMENT
    assert plan(device="cpu", lora=None).bytes_of("trained") - 2 * base <= 2 * FLAT_ALIGNMENT


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_four_bits_are_planned_as_they_are_held(fused: bool) -> None:
    """4.127 bits for a weight of a block and a kilobyte for each matrix; one of them is dense for
    as long as a product takes, and none is kept from the forward to the backward pass."""
    half, narrow = (plan(base=base, fused=fused, lora=QV) for base in ("half", "nf4"))
    matrices = [SMALL.linear_shape(name) for name in LINEARS]
    weights = SMALL.n_layers * sum(rows * columns for rows, columns in matrices)
    saved = half.bytes_of("weights") - narrow.bytes_of("weights")
    held = 2 * weights - saved - 1024 * SMALL.n_layers * len(LINEARS)
    # The device gives each matrix whole multiples of 512 bytes.
    assert held == pytest.approx(weights * 4.127 / 8, rel=2e-3)
    dense, made = (sizes_of(replace(JOB, base=base, fused=fused)) for base in ("half", "nf4"))
    assert made.kept == dense.kept
    short = replace(JOB, fused=fused, micro_batch=1, seq_len=16)
    without, beside = (trace(replace(short, base=b)).backward_beside for b in ("half", "nf4"))
    largest = 2 * max(rows * columns for rows, columns in matrices)
    assert 0.8 * largest < beside - without < 1.2 * largest


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_eight_bits_are_planned_as_they_are_held(fused: bool) -> None:
    """A byte for a weight of a block and four for each row or column; nothing more is kept from the
    forward to the backward pass, and a product takes no dense matrix."""
    half, narrow = (plan(base=base, fused=fused, lora=QV) for base in ("half", "fp8"))
    matrices = {name: SMALL.linear_shape(name) for name in LINEARS}
    weights = SMALL.n_layers * sum(rows * columns for rows, columns in matrices.values())
    scales = SMALL.n_layers * sum(4 * shape[n in ROW_PARALLEL] for n, shape in matrices.items())
    held = 2 * weights - half.bytes_of("weights") + narrow.bytes_of("weights")
    # The device gives each matrix whole multiples of 512 bytes.
    assert 0 <= held - weights - scales < 512 * SMALL.n_layers * len(LINEARS)
    dense, made = (sizes_of(replace(JOB, base=base, fused=fused)) for base in ("half", "fp8"))
    assert made.kept == dense.kept


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_less_is_kept_under_more_checkpointing(device: Any, fused: bool) -> None:
    sizes = [
        plan(device=device, fused=fused, checkpointing=level).bytes_of("kept")
        for level in ("block", "ffn", "none")
    ]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"micro_batch": 4}, {"micro_batch": 2}),
        ({"seq_len": 256}, {"seq_len": 128}),
        ({"lora": LoRAOptions(rank=4, targets=LINEARS)}, {}),
        ({"lora": LoRAOptions(rank=64)}, {}),
        ({"lora": None}, {}),
        ({"precision": "fp32"}, {"precision": "bf16"}),
        ({"fused": False}, {"fused": True}),
        ({"tensor_parallel": 1}, {"tensor_parallel": 2}),
        ({"supervised": None}, {"supervised": 10}),
        ({"lora": None}, {"lora": None, "data_parallel": 4}),
        ({"data_parallel": 4}, {"data_parallel": 4, "zero": CUT_UP}),
        ({"lora": None}, {"lora": None, "zero": replace(ZERO, offload_optimizer=True)}),
    ],
    ids=lambda changes: " ".join(changes) or "as it is",
)
def test_more_takes_more(more: dict[str, Any], less: dict[str, Any]) -> None:
    assert plan(**more).peak_bytes > plan(**less).peak_bytes


def test_what_each_of_two_tensor_parallel_gpus_reads_of_the_other_is_planned() -> None:
    """Whatever the number of rows."""
    for ranks, rooms in ((1, 0), (2, 3), (4, 0)):
        found = plan(config=SMALL, fused=True, device="cuda", tensor_parallel=ranks)
        sent = sum(term.bytes for term in found.terms if term.name == "communication")
        assert sent // (ROWS * SMALL.dim * JOB.dtype.itemsize) == rooms


def test_packed_documents_take_no_more_than_one() -> None:
    packed = plan(documents=(50, 78, 15, 113)).peak_bytes
    assert packed == pytest.approx(plan().peak_bytes, rel=0.02)


def test_a_degree_that_does_not_divide_the_model_is_refused() -> None:
    with pytest.raises(UserError, match="does not divide the query heads"):
        memory(replace(JOB, tensor_parallel=3))


def test_sizes_of_levels_give_the_whole_step() -> None:
    """Three blocks traced, and a model of more: kept bytes add up, the rest stays the same."""
    for fused in (False, True):
        job = replace(JOB, fused=fused, config=SMALL.with_layers(5))
        sizes = sizes_of(job)
        for level in sizes.kept:
            found = trace(replace(job, checkpointing=(level,) * 5))
            assert found.kept[1:] == [sizes.kept[level]] * 4
            beside = max(found.loss_beside, found.backward_beside)
            assert beside <= max(sizes.beside.values()) * 1.01


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_fills_what_is_there(device: Any) -> None:
    job = replace(JOB, device=device, fused=True)
    assert kept_within(job, GIB * 64) == (Kept.ALL,) * 3
    assert kept_within(job, 2**20) == (Kept.HOST if device == "cuda" else Kept.INPUT,) * 3
    plans = (memory(replace(job, checkpointing=level)) for level in ("block", "none"))
    available = sum(plan.used_bytes for plan in plans) // 2
    kept = kept_within(job, available)
    assert kept != (Kept.ALL,) * 3
    assert memory(replace(job, checkpointing=kept)).peak_bytes <= available


@pytest.mark.parametrize(
    ("more", "most"),
    [
        ({}, 4),
        ({"data_parallel": 4, "base_sharers": 2}, 12),
        pytest.param({"data_parallel": 4, "zero": NORMS_WHOLE}, 12, marks=pytest.mark.long),
        ({"data_parallel": 4, "zero": NORMS_WHOLE, "lora": None}, 14),
    ],
    ids=["", "shared", "ZeRO-3", "full"],
)
def test_auto_traces_all_blocks_only_where_it_must(
    more: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there between steps grows by as much with each block, but where all train."""
    job = replace(JOB, config=SMALL.with_layers(14), checkpointing="block", fused=True, **more)
    whole, traced = trace(job), []

    def counted(of: Job) -> Traced:
        traced.append(of.config.n_layers)
        return trace(of)

    monkeypatch.setattr(levels, "trace", counted)
    before, trained = levels._between_steps(job)
    assert before == pytest.approx(whole.before, rel=1e-4)  # pieces are of whole 512 bytes
    assert trained == whole.trained_elements and max(traced) == most


def test_inputs_in_host_memory_are_planned_as_the_hosts() -> None:
    """Of the device's nothing is kept but the masks' seeds, and one input more is there while it
    is copied."""
    job = replace(JOB, fused=True, seq_len=4096, config=SMALL.with_layers(6))
    block, host = (replace(job, checkpointing=level) for level in ("block", "host"))
    each = job.tokens * SMALL.dim * 2
    assert max(trace(host).kept[1:]) < 4096 < each <= trace(block).kept[1]
    assert memory(block).peak_bytes - memory(host).peak_bytes >= 4 * each
    assert (host_bytes(host), host_bytes(block)) == (6 * each, 0)
    assert host_bytes(replace(host, fused=False)) == 0
    assert block.captured and host.captured
    assert not replace(host, seq_len=LONG + 1).captured


def test_the_feed_forward_of_long_rows_is_never_whole() -> None:
    """So a wider one adds to weights, and next to nothing per token."""

    def beside(ffn_dim: int, level: Kept) -> float:
        config = replace(SMALL, ffn_dim=ffn_dim)
        job = replace(JOB, fused=True, config=config, micro_batch=1, checkpointing=(level,) * 3)
        short, longer = (trace(replace(job, seq_len=length)) for length in (32768, 65536))
        return (longer.backward_beside - short.backward_beside) / 32768 / 2

    assert beside(3 * 1536, Kept.INPUT) == pytest.approx(beside(1536, Kept.INPUT), abs=SMALL.dim)
    assert beside(3 * 1536, Kept.MIDDLE) > beside(1536, Kept.MIDDLE) + 2 * 3072


def test_a_mixed_plan_is_between_the_pure_ones() -> None:
    none, block = (plan(checkpointing=(level,) * 3) for level in (Kept.ALL, Kept.INPUT))
    mixed = plan(checkpointing=(Kept.INPUT, Kept.INPUT, Kept.ALL))
    assert block.bytes_of("kept") < mixed.bytes_of("kept") < none.bytes_of("kept")


def test_the_largest_that_fits_fits_and_the_next_does_not() -> None:
    available = plan().used_bytes + 2**20
    rows = largest_micro_batch(JOB, available)
    assert plan(micro_batch=rows).used_bytes <= available < plan(micro_batch=rows + 1).used_bytes
    length = largest_seq_len(JOB, available)
    assert plan(seq_len=length).used_bytes <= available < plan(seq_len=length + 128).used_bytes
    assert largest_micro_batch(JOB, 2**20) == largest_seq_len(JOB, 2**20) == 0


def test_planning_needs_no_deepspeed() -> None:
    code = "import sys, llama.planning.memory; print('deepspeed' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "least", "most"), [(1, 13.4, 14.2), (4, 16.0, 18.0)])
def test_7b_takes_what_was_measured(rows: int, least: float, most: float) -> None:
    """Rank 16 on wq and wv, blocks computed again, half precision, rows of 2048 tokens."""
    zero = Zero(1, reduce_bucket=10_000_000)
    job = Job(PRESETS["llama-7b"], precision="fp16", zero=zero, checkpointing="block")
    found = memory(replace(job, micro_batch=rows, seq_len=2048))
    weights = found.bytes_of("weights") + found.bytes_of("trained")
    assert weights / GIB == pytest.approx(12.57, abs=0.01)
    assert least <= found.peak_bytes / GIB <= most
