"""The fused block against the plain one, whatever it keeps, and what it keeps in memory.

On the CPU the kernels run as they are written; tests/gpu has what torch.compile makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llama.adapters.lora import LoRAAdapter
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.fused import block as fused_block
from llama.fused.attended import Attended
from llama.fused.install import RunFused, install, uncovered
from llama.model.attention import Attention
from llama.model.config import LINEARS
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.transformer import Transformer, run_block
from llama.parallel import dropout
from tests.parity.test_packing import documents, loss_and_gradients, trained_model
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY

CPU = torch.device("cpu")
PACKINGS = {"uniform": [8, 8, 8], "mixed": [5, 9, 3]}


def model(targets: tuple[str, ...] = LINEARS, p: float = 0.0) -> Transformer:
    return trained_model(p, targets=targets)


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, torch.Tensor]]:
    """Loss and gradients of one packed batch, by the fused path where `kept` is given. The plain
    path drops by the fused one's masks."""

    monkeypatch.setattr(dropout, "on_cuda", lambda _: True)

    def run(made: Transformer, lengths: list[int], kept: Kept | None) -> Any:
        made.run_block = run_block
        if kept is not None:
            assert install(made) is None
        made.keep([Kept.ALL if kept is None else kept] * TINY.n_layers)
        torch.manual_seed(3)
        inputs = model_inputs(make_batch([documents(lengths)], 0), CPU)
        loss, gradients = loss_and_gradients(made, [inputs])
        return loss.item(), torch.cat([g.flatten() for g in gradients.values()])

    return run


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("targets", [("wq", "wv"), LINEARS, ("w2",)], ids=str)
def test_fused_equals_plain_whatever_is_kept(
    result: Any, targets: tuple[str, ...], p: float, packing: str
) -> None:
    made, lengths = model(targets, p), PACKINGS[packing]
    loss, gradients = result(made, lengths, None)
    first = None
    for kept in Kept:
        found, found_gradients = result(made, lengths, kept)
        assert_close(found, loss, SMALL_MODEL)
        assert_close(found_gradients, gradients, SMALL_MODEL)
        first = found_gradients if first is None else first
        assert torch.equal(found_gradients, first), "what is computed again is bit for bit the same"


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_an_adapter_that_began_from_its_weight(result: Any, p: float) -> None:
    """Of twice the rank; what is not its own part has no gradient."""
    made = trained_model(p, targets=("wq", "wv", "w2"), start="pissa")
    loss, gradients = result(made, PACKINGS["mixed"], None)
    for kept in (Kept.INPUT, Kept.ALL):
        found, found_gradients = result(made, PACKINGS["mixed"], kept)
        assert_close(found, loss, SMALL_MODEL)
        assert_close(found_gradients, gradients, SMALL_MODEL)


def test_a_rotation_that_lengthens_too(result: Any) -> None:
    """Yarn multiplies cosines and sines, so that turning a gradient back is no inverse."""
    made = model()
    plain_loss, _ = result(made, PACKINGS["mixed"], None)
    made.rotation_factor = 1.3
    loss, gradients = result(made, PACKINGS["mixed"], None)
    fused_loss, fused_gradients = result(made, PACKINGS["mixed"], Kept.INPUT)
    assert abs(loss - plain_loss) > 1e-3 * plain_loss
    assert fused_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(fused_gradients, gradients, rtol=1e-4, atol=1e-6)


def test_the_first_block_s_frozen_layers_are_not_gone_back_through(
    result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing below them trains: q, k and v cost no product there."""
    calls: list[int] = []
    backward = fused_block.input_share

    def counted(weights: Any, grads: Any, place: Any) -> Any:
        calls.append(len(weights))
        return backward(weights, grads, place)

    monkeypatch.setattr(fused_block, "input_share", counted)
    result(model(("wq", "wv")), [8, 8], Kept.ALL)
    q_k_v, gate_up = 3, 2
    assert calls.count(q_k_v) == TINY.n_layers - 1
    assert calls.count(gate_up) == TINY.n_layers


def test_more_is_kept_at_each_level(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes a token as `Kept` says: counted over what the first block's pass holds."""
    held: dict[Kept, int] = {}
    forward = fused_block._Run.forward

    def measured(run: Any, saved: Any, kept: Kept) -> torch.Tensor:
        out = forward(run, saved, kept)
        tensors = [saved.x, saved.middle, saved.gate, saved.up]
        if saved.attended is not None:
            tensors += [saved.attended.out(), *saved.attended._held]
        sizes = {t.untyped_storage().data_ptr(): t.nbytes for t in tensors if t is not None}
        held.setdefault(kept, sum(sizes.values()) // saved.x.shape[0])
        return out

    monkeypatch.setattr(fused_block._Run, "forward", measured)
    made = model(("wq", "wv"))
    for kept in Kept:
        if kept > Kept.HOST:
            result(made, [8, 8], kept)
    heads, kv_heads, size = TINY.n_heads * TINY.head_dim, TINY.n_kv_heads * TINY.head_dim, 4
    steps = [TINY.dim, heads, TINY.dim, heads + 2 * kv_heads, 2 * TINY.ffn_dim]
    assert list(held.values()) == [size * sum(steps[: n + 1]) for n in range(len(steps))]


def test_attention_goes_back_from_inputs_given_later() -> None:
    """Bit for bit: the same kernel, over copies of the same numbers."""
    generator = torch.Generator().manual_seed(0)
    qkv = tuple(torch.randn(12, n, 8, generator=generator) for n in (4, 2, 2))
    upstream, bounds = torch.randn(12, 32, generator=generator), Documents((0, 6, 12))
    kept = Attended(qkv, bounds, keep_inputs=True)
    later = Attended(qkv, bounds, keep_inputs=False)
    assert later.needs_inputs and not kept.needs_inputs
    later.fill(tuple(x.clone() for x in qkv))
    for found, expected in zip(later.backward(upstream), kept.backward(upstream), strict=True):
        assert torch.equal(found, expected) and found.abs().sum() > 0


@pytest.mark.parametrize("what", ["trainable base", "bias", "partitioned", "other"])
def test_what_the_fused_path_does_not_know_goes_the_plain_way(what: str) -> None:
    block = model().layers[0]
    assert uncovered(block) is None
    layer: Any = block.attention.wk  # type: ignore[union-attr]
    if what == "trainable base":
        layer.weight.requires_grad_(True)
    elif what == "bias":
        layer.bias = torch.nn.Parameter(torch.zeros(4))
    elif what == "partitioned":
        layer.weight.ds_id = 3  # as ZeRO-3 marks its parameters
    else:
        layer.__class__ = type("Quantised", (type(layer),), {})
    assert uncovered(block)


def test_a_watched_block_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks for the first non-finite tensor hooks on to each part's output."""
    made = model()
    calls: list[Any] = []

    def counted(block: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        calls.append(block)
        return x

    monkeypatch.setattr("llama.fused.install.fused_block", counted)
    assert install(made) is None and isinstance(made.run_block, RunFused)
    inputs = model_inputs(make_batch([documents([5, 3])], 0), CPU)

    def fused_calls() -> int:
        calls.clear()
        made(**inputs)
        return len(calls)

    assert fused_calls() == TINY.n_layers
    handle = made.layers[0].register_forward_hook(lambda *_: None)
    assert fused_calls() == TINY.n_layers - 1
    handle.remove()
    assert fused_calls() == TINY.n_layers
    with torch.no_grad():
        assert fused_calls() == 0
    made.eval()
    assert fused_calls() == 0


class _Unknown(LoRAAdapter):
    """Another arithmetic on the same factors."""

    def low_rank(self) -> Any:
        return None


class _OtherAttention(Attention):
    pass


@pytest.mark.parametrize("what", ["adapter", "attention", "block", "rates"])
def test_a_kind_that_is_not_listed_runs_plain_with_one_note(what: str) -> None:
    """Types decide, not looks: each of these has all that the fused form reads."""
    made = model()
    block: Any = made.layers[0]
    if what == "adapter":
        block.attention.wq.lora.__class__ = _Unknown
        expected = "wq has an adapter of another kind, _Unknown"
    elif what == "attention":
        block.attention.__class__ = _OtherAttention
        expected = "attention is a _OtherAttention"
    elif what == "block":
        block.__class__ = type("Parallel", (type(block),), {})
        expected = "a block is a Parallel"
    else:
        block.attention.wq.lora.dropout = 0.5
        expected = "its adapters drop at different rates"
    said = install(made)
    assert said == f"1 of {TINY.n_layers} blocks are not run as one fused function: {expected}"
    assert isinstance(made.run_block, RunFused)
    assert made.run_block.covered == frozenset(list(made.layers)[1:])
