"""The paths that only a CUDA device takes, against plain ones: the variable-length kernel, the
fused SDPA kernels, the Triton forms of the element-wise functions.

Differences are norms: `|found - expected| / |expected|` over all elements. Half precision is
compared with float32 on the same, already rounded, values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import Any

import pytest
import torch

from llama.adapters.attach import adapters, attach, initialise
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.data.types import Example
from llama.kernels import compiled as fusion
from llama.kernels import elementwise
from llama.model import attention
from llama.model.config import LINEARS
from llama.model.documents import Documents
from llama.model.rope import Rotation
from llama.model.transformer import Transformer
from llama.settings import LoRAOptions
from tests.parity.test_packing import documents, loss_and_gradients
from tests.support.model_files import TINY, random_state
from tests.support.skips import needs_gpus

pytestmark = [
    pytest.mark.gpu,
    needs_gpus(),
]

CUDA = torch.device("cuda")
CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]
MIXED = [9, 300, 2, 170, 5, 233, 64]

LOSS = {torch.bfloat16: 5e-3, torch.float16: 1e-3}
"""Largest difference of a model's summed loss, relative."""
GRADIENTS = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of all adapters' gradients together; bf16 keeps three bits less."""
KERNEL = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
"""Of one attention's output and of each of its gradients."""
FUSED = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3, torch.float32: 1e-5}
"""Of one element-wise function's output and gradients: fused, it rounds less often."""

GROUPED = replace(
    TINY, dim=512, n_heads=8, n_kv_heads=2, head_dim=64, ffn_dim=1408, max_seq_len=1024
)

Note = Callable[[str, object], None]


@pytest.fixture
def note(record_property: Note) -> Note:
    """Says a measured number and keeps it in the report."""

    def say(name: str, value: object) -> None:
        shown = f"{value:.2e}" if isinstance(value, float) else value
        print(f"\n  {name}: {shown}", end="")
        record_property(name, shown)

    return say


@pytest.fixture
def variable_length_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of documents of each call of the variable-length kernel."""
    kernel, calls = attention._variable_length, []

    def counted(*qkv_documents: Any) -> torch.Tensor:
        calls.append(len(qkv_documents[-1]))
        return kernel(*qkv_documents)

    monkeypatch.setattr(attention, "_variable_length", counted)
    return calls


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# Whole models


def model(dtype: torch.dtype, rounded_to: torch.dtype) -> Transformer:
    """Two blocks with grouped heads and adapters everywhere, B not zero."""
    made = Transformer(GROUPED)
    state = random_state(GROUPED)
    made.load_state_dict({n: 0.5 * t if t.dim() == 2 else t for n, t in state.items()})
    attach(made, LoRAOptions(8, 16.0, 0.0, LINEARS))
    initialise(made, 0, CPU)
    generator = torch.Generator().manual_seed(1)
    for _, adapter in adapters(made):
        with torch.no_grad():
            adapter.b.normal_(std=0.05, generator=generator)  # type: ignore[operator]
    return made.to(CUDA, rounded_to).to(dtype).train()


def trained(made: Transformer, rows: Sequence[list[Example]]) -> tuple[float, torch.Tensor]:
    """Summed over `rows`, one batch each: the loss, and all adapters' gradients end to end."""
    batches = [model_inputs(make_batch([row], 0), CUDA) for row in rows]
    loss, gradients = loss_and_gradients(made, batches)
    return loss.item(), torch.cat([g.float().flatten() for g in gradients.values()])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_packed_equals_unpacked(
    dtype: torch.dtype, variable_length_calls: list[int], note: Note
) -> None:
    made, examples = model(dtype, dtype), documents(MIXED)
    loss, gradients = trained(made, [examples])
    assert variable_length_calls == [len(MIXED)] * GROUPED.n_layers
    alone, gradients_alone = trained(made, [[example] for example in examples])
    assert len(variable_length_calls) == GROUPED.n_layers, "one document is a plain batch"
    apart, gradients_apart = abs(loss - alone) / alone, difference(gradients, gradients_alone)
    note("loss", apart)
    note("gradients", gradients_apart)
    assert apart <= LOSS[dtype] and gradients_apart <= GRADIENTS[dtype]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_packed_in_half_precision_is_float32_s(
    dtype: torch.dtype, variable_length_calls: list[int], note: Note
) -> None:
    examples = documents(MIXED)
    expected, expected_gradients = trained(model(torch.float32, dtype), [examples])
    assert not variable_length_calls, "float32 goes document by document"
    loss, gradients = trained(model(dtype, dtype), [examples])
    assert len(variable_length_calls) == GROUPED.n_layers
    apart, gradients_apart = (
        abs(loss - expected) / expected,
        difference(gradients, expected_gradients),
    )
    note("loss", apart)
    note("gradients", gradients_apart)
    assert apart <= LOSS[dtype] and gradients_apart <= GRADIENTS[dtype]


# Attention alone


def attended(
    lengths: Sequence[int], heads: tuple[int, int], dtype: torch.dtype, rounded_to: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output for random q, k and v of head_dim 128, and the gradients of the three."""
    generator = torch.Generator(CUDA).manual_seed(0)
    tokens = sum(lengths)
    q, k, v, upstream = (
        torch.randn(tokens, n, 128, generator=generator, device=CUDA).to(rounded_to).to(dtype)
        for n in (heads[0], heads[1], heads[1], heads[0])
    )
    given = [x.requires_grad_() for x in (q, k, v)]
    bounds = Documents(tuple(accumulate(lengths, initial=0)))
    out = attention.document_attention(q, k, v, bounds)
    return out, list(torch.autograd.grad(out, given, upstream, retain_graph=True))


def nodes(out: torch.Tensor) -> Iterator[str]:
    """Names of what the backward pass of `out` goes through."""
    left, seen = [out.grad_fn], set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node.name()
            left += [following for following, _ in node.next_functions]


def compare_with_float32(
    lengths: Sequence[int], heads: tuple[int, int], dtype: torch.dtype, note: Note
) -> torch.Tensor:
    out, gradients = attended(lengths, heads, dtype, dtype)
    expected, expected_gradients = attended(lengths, heads, torch.float32, dtype)
    found = dict(zip("qkv", gradients, strict=True)) | {"output": out}
    right = dict(zip("qkv", expected_gradients, strict=True)) | {"output": expected}
    apart = {name: difference(found[name], right[name]) for name in found}
    for name, value in apart.items():
        note(name, value)
    assert max(apart.values()) <= KERNEL[dtype]
    return out


@pytest.mark.parametrize("heads", [(8, 8), (8, 2)], ids=["equal", "grouped"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_variable_length_kernel_is_the_loop_in_float32(
    dtype: torch.dtype, heads: tuple[int, int], variable_length_calls: list[int], note: Note
) -> None:
    compare_with_float32(MIXED, heads, dtype, note)
    assert variable_length_calls == [len(MIXED)]


@pytest.mark.parametrize("lengths", [[1024, 1024], [333] * 3, [2048]], ids=str)
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)], ids=["equal", "grouped"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_uniform_documents_by_a_fused_kernel_are_float32_s(
    dtype: torch.dtype,
    heads: tuple[int, int],
    lengths: list[int],
    variable_length_calls: list[int],
    note: Note,
) -> None:
    out = compare_with_float32(lengths, heads, dtype, note)
    (kernel,) = {name for name in nodes(out) if "ScaledDotProduct" in name}
    note("kernel", kernel)
    assert "Cudnn" in kernel or "Flash" in kernel
    assert not variable_length_calls


# What Triton makes


def elementwise_results(name: str, tokens: int, heads: int, dtype: torch.dtype) -> list[Any]:
    """Output and gradients of one function; a width or a number of heads follows from `heads`."""
    generator = torch.Generator(CUDA).manual_seed(tokens)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=CUDA).to(dtype)

    if name == "rms_norm":
        given = [random(tokens, 64 * heads).requires_grad_()]
        out = elementwise.rms_norm(given[0], random(64 * heads), 1e-5)
    elif name == "swiglu":
        given = [random(tokens, 176 * heads).requires_grad_() for _ in range(2)]
        out = elementwise.swiglu(*given)
    else:
        given = [random(tokens, heads, 64).requires_grad_()]
        frequencies = 10000.0 ** -(torch.arange(0, 64, 2, device=CUDA) / 64)
        out = Rotation(frequencies, torch.arange(tokens, device=CUDA), dtype)(given[0])
    return [out.detach(), *torch.autograd.grad(out, given, random(*out.shape))]


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "rotate"])
@pytest.mark.parametrize("dtype", FUSED, ids=str)
def test_fused_functions_equal_plain_ones(
    dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch, note: Note
) -> None:
    """For several numbers of tokens, and two numbers of heads."""
    monkeypatch.setattr(fusion, "_compiled", False)  # and again when the test is over
    cases = [(tokens, heads) for heads in (8, 2) for tokens in (7, 64, 333, 2048)]
    plain = [elementwise_results(name, *case, dtype) for case in cases]
    called: list[str] = []
    from llama.kernels.triton_forms import FORMS  # Triton is there where a GPU is

    forms = {
        name: lambda *args, name=name, form=form: (called.append(name), form(*args))[1]
        for name, form in FORMS.items()
    }
    monkeypatch.setattr(fusion, "_forms", lambda: forms)
    fusion.compile_kernels()
    fused = [elementwise_results(name, *case, dtype) for case in cases]
    assert set(called) >= {name}
    pairs = zip(chain.from_iterable(fused), chain.from_iterable(plain), strict=True)
    largest = max(difference(found, expected) for found, expected in pairs)
    note("largest difference", largest)
    assert largest <= FUSED[dtype]
