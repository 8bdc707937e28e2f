"""The ranks of `test_ranks`: `torchrun ... -m tests.unit.fused.tensor_parallel_ranks [read]`, the
latter where each of two ranks reads what the other shows."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from llama.adapters.attach import adapters, attach, initialise
from llama.assembly.model import build_model
from llama.data.batches import make_batch
from llama.data.feed import model_inputs
from llama.engine import start_processes
from llama.fused import own_rows, tiles
from llama.fused.captured import capture
from llama.fused.install import install
from llama.fused.recorded import recorded_by_all
from llama.launch.processes import stop_processes
from llama.launch.program import run_program
from llama.model import loss as model_loss
from llama.model.config import LINEARS
from llama.model.kept import Kept
from llama.model.loss import summed_cross_entropy
from llama.model.transformer import Transformer, run_block
from llama.parallel import dropout, sums
from llama.parallel.layers import shard_dim
from llama.parallel.mesh import create_mesh
from llama.planning.wire import block_sums, summed_bytes
from llama.settings import LoRAOptions
from llama.weights.open_model import ModelSource
from llama.weights.random_init import RandomReader
from tests.parity.test_packing import documents, loss_and_gradients
from tests.support.closeness import SMALL_MODEL, assert_close
from tests.support.model_files import TINY
from tests.unit.fused.shown_files import OnFiles, ranks_read_shares

CPU = torch.device("cpu")
TARGETS = (LINEARS, ("wq", "wv"), ("wo",), ("w1", "w2"))
PACKINGS = ([8, 8, 8], [5, 9, 3])


def model_of(targets: tuple[str, ...], p: float, base: str) -> Transformer:
    mesh = create_mesh(dist.get_world_size())
    source = ModelSource("tiny", RandomReader(TINY), None)
    model = build_model(source, torch.float32, CPU, mesh.tensor_parallel, base=base)
    attach(model, LoRAOptions(4, 8.0, p, targets))
    initialise(model, 0, CPU)
    for number, (_, adapter) in enumerate(adapters(model)):
        b: Any = adapter.b
        rank = 0 if shard_dim(b) is None else dist.get_rank()
        generator = torch.Generator().manual_seed(100 * rank + number)
        with torch.no_grad():
            b.normal_(std=0.1, generator=generator)
    return model.train()


def result(model: Transformer, lengths: list[int], kept: Kept | None) -> Any:
    """By the fused block where `kept` is given."""
    model.run_block = run_block
    if kept is not None:
        assert install(model) is None
        if not model.tok_embeddings.tp.sums.are_read:
            assert "tensor-parallel" in str(capture(model))
    model.keep([Kept.ALL if kept is None else kept] * TINY.n_layers)
    torch.manual_seed(3)
    inputs = model_inputs(make_batch([documents(lengths)], 0), CPU)
    loss, gradients = loss_and_gradients(model, [inputs])
    return loss.item(), {name: gradient.clone() for name, gradient in gradients.items()}


def check_equal_to_plain(targets: tuple[str, ...], p: float, lengths: list[int], base: str) -> None:
    """Whatever is kept; what every rank has whole is the same on each, to the last digit."""
    model = model_of(targets, p, base)
    loss, plain = result(model, lengths, None)
    for kept in Kept:
        found, gradients = result(model, lengths, kept)
        assert_close(found, loss, SMALL_MODEL)
        for name, gradient in gradients.items():
            assert_close(gradient, plain[name], SMALL_MODEL)
            if shard_dim(model.get_parameter(name)) is None:
                others = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]
                dist.all_gather(others, gradient.contiguous())
                assert all(torch.equal(other, gradient) for other in others), name


def parts_of_rows(fewest: int) -> AbstractContextManager[Any]:
    """Within it sums are taken in parts of so many rows at least, as if they had many."""
    return mock.patch.multiple(sums, PART=fewest, rows_at_once=lambda *_: 1)


def own_rows_of_few() -> AbstractContextManager[Any]:
    """Within it ranks share the rows of adapters' inputs, as if there were many."""
    return mock.patch.object(own_rows, "FEWEST", 2)


def check_equal_where_shares_are_read() -> None:
    """By each of two ranks of the other's memory: whole, and part by part."""
    for targets, p in product(TARGETS, (0.0, 0.3)):
        check_equal_to_plain(targets, p, PACKINGS[1], "half")
    for base in ("fp8", "nf4"):
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[0], base)
    with mock.patch.object(sums, "ROWS", 5):  # the last one shorter
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[0], "half")
        with parts_of_rows(1):
            check_equal_to_plain(LINEARS, 0.3, PACKINGS[0], "half")
    with parts_of_rows(2):
        for targets in TARGETS:
            check_equal_to_plain(targets, 0.3, PACKINGS[1], "half")
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[0], "nf4")
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[0], "fp8")
        check_own_rows()
    with mock.patch.object(sums, "BESIDE", 10**6):  # no room for what is summed beside
        check_own_rows()
    with mock.patch.object(tiles, "TOKENS", 7):
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[1], "half")


def check_own_rows() -> None:
    with own_rows_of_few():
        for targets, p, lengths in product(TARGETS, (0.0, 0.3), PACKINGS):
            check_equal_to_plain(targets, p, lengths, "half")
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[1], "fp8")
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[1], "nf4")
        with mock.patch.object(tiles, "TOKENS", 7):
            check_equal_to_plain(LINEARS, 0.3, PACKINGS[1], "half")


def check_loss_by_its_kernels(reads: bool) -> None:
    """The loss of a vocabulary of 12 that is cut: as written for kernels, and as it is without. The
    last rank's last rows, or all of them, stand for no token; some positions count for nothing."""
    tp, generator = create_mesh(dist.get_world_size()).tensor_parallel, torch.Generator()
    tp.sums.show(CPU, 12, torch.float32)
    assert tp.sums.are_read == reads
    hidden, whole = (torch.randn(n, 12, generator=generator.manual_seed(n)) for n in (9, 16))
    size, last = 16 // tp.size, tp.rank == tp.size - 1
    weight, columns = whole.chunk(tp.size)[tp.rank], 0 if last and tp.size > 2 else size - 4 * last
    labels = torch.tensor([0, 6, 7, 11, -1, 3, 8, -1, 10])
    found = []
    for by_kernels in (False, True):
        leaf = hidden.clone().requires_grad_()
        with mock.patch.object(model_loss, "compiled", lambda of=by_kernels: of):
            value = summed_cross_entropy(leaf, weight, labels, tp, columns, elements=3 * size)
        value.backward()
        found.append((value.item(), leaf.grad))
    counts = labels >= 0
    logits = hidden[counts] @ whole[:12].t()
    expected = torch.nn.functional.cross_entropy(logits, labels[counts], reduction="sum").item()
    for value, gradient in found:
        assert_close(value, expected, SMALL_MODEL)
        assert_close(gradient, found[0][1], SMALL_MODEL)


def check_number_of_sums(made: list[OnFiles]) -> None:
    """Of a block whose inputs alone are kept: two in the forward pass, the first again and two more
    in the backward pass, and one of adapters. Nothing below the first block trains. Of the rest of
    the model: of the embedding, three of the loss, and of the gradient to what it is of. Where
    ranks share the rows of adapters' inputs, two more of each block."""
    for sharing, of_block in ((nullcontext(), 6), (own_rows_of_few(), 8)):
        with sharing:
            model = model_of(LINEARS, 0.0, "half")
            for _ in range(2):
                install(model)
                before = made[-1].met
                result(model, PACKINGS[0], Kept.INPUT)
            assert made[-1].met - before == of_block * TINY.n_layers - 1 + 5


def check_elements_of_sums() -> None:
    """Those of whole steps are those planned, whatever is kept. Beside the blocks' there are the
    embedding's output, and of each supervised token the gradient of its last hidden state and three
    numbers of its loss. Nothing below the first block trains."""
    lengths, met = PACKINGS[1], 0

    def counting(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        nonlocal met
        met += tensor.numel()
        return all_reduce(tensor, *args, **options)

    all_reduce, tokens = dist.all_reduce, sum(lengths)
    supervised = make_batch([documents(lengths)], 0).supervised
    for targets, by_rows, kept in product(TARGETS, (False, True), Kept):
        lora = LoRAOptions(4, 8.0, 0.0, targets)
        of_blocks = block_sums(TINY, lora, tokens, [kept] * TINY.n_layers, True, by_rows)
        model, met = model_of(targets, 0.0, "half"), 0
        with own_rows_of_few() if by_rows else nullcontext():
            with mock.patch.object(dist, "all_reduce", counting):
                result(model, lengths, kept)
        first = tokens * TINY.dim
        planned = summed_bytes(TINY, tokens, supervised, of_blocks, 1) - first + 3 * supervised
        assert met == planned, (targets, by_rows, kept, met, planned)


def check_that_ranks_record_together() -> None:
    """Where one of them cannot, none does, and the error is that of all. Sums go on from one room
    wherever each has broken its recording off: while it is recorded no rank waits for another."""
    refused, full = RuntimeError("refused"), torch.OutOfMemoryError("no memory")
    tp = create_mesh(dist.get_world_size()).tensor_parallel
    tp.sums.show(CPU, 12, torch.float32)
    for errors in product((None, refused, full), repeat=2):

        def make(error: Any = errors[tp.rank]) -> str:
            with mock.patch.object(OnFiles, "meet"):
                for _ in range(3 - tp.rank if error is not None else 6):
                    tp.sums.every(torch.ones(2, 3))
            if error is not None:
                raise error
            return "recorded"

        tp.sums.settle()
        tp.sums.forget()
        try:
            found: Any = recorded_by_all(tp, make)
        except RuntimeError as error:
            found = type(error)
            assert error.__context__ is None
        tp.sums.forget()
        kinds = [type(error) for error in errors if error is not None]
        expected = torch.OutOfMemoryError if torch.OutOfMemoryError in kinds else RuntimeError
        assert found == (expected if kinds else "recorded"), (errors, found)
        for number in range(3):
            own = torch.full((2, 3), float(10 * number + tp.rank))
            assert tp.sums.every(own)[:, 0, 0].tolist() == [10.0 * number, 10.0 * number + 1]


def check_four() -> None:
    check_equal_to_plain(LINEARS, 0.3, PACKINGS[1], "half")
    check_equal_to_plain(("wo", "w1"), 0.3, PACKINGS[0], "half")
    with own_rows_of_few():
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[1], "half")
    check_loss_by_its_kernels(False)


def check_two() -> None:
    for targets, p, lengths in product(TARGETS, (0.0, 0.3), PACKINGS):
        check_equal_to_plain(targets, p, lengths, "half")
    for base in ("fp8", "nf4"):
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[1], base)
    with mock.patch.object(tiles, "TOKENS", 7):
        check_equal_to_plain(LINEARS, 0.3, PACKINGS[1], "half")
    check_own_rows()
    check_elements_of_sums()
    check_loss_by_its_kernels(False)


def check_two_that_read() -> None:
    with ranks_read_shares() as made:
        check_equal_where_shares_are_read()
        check_loss_by_its_kernels(True)
        check_number_of_sums(made)
        check_that_ranks_record_together()


def main() -> None:
    start_processes()
    with mock.patch.object(dropout, "on_cuda", lambda _: True):  # by one form of masks
        if "read" in sys.argv[1:]:
            check_two_that_read()
        elif dist.get_world_size() == 2:
            check_two()
        else:
            check_four()
    stop_processes()


if __name__ == "__main__":
    run_program(main)
