"""A pass over a micro-batch, of training or of an evaluation, as CUDA graphs, which the host starts
and does not perform.

A pass launches thousands of kernels, and to launch one takes a host about as long as to compute it
takes a GPU that has a thousand tokens: with small micro-batches the GPU waits for its host. A CUDA
graph is the record of such launches, repeated by one call, on the same addresses. So inputs are put
into tensors that stay where they are, of sizes that are rounded up; what a rounded size has too
much is more documents, of which no position is supervised (`captured_inputs.py`).

Shapes: T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from llama.fused.captured_inputs import (
    Inputs,
    Shape,
    is_watched,
    mode_of,
    serving,
    shapes_of,
    shares_tokens,
    side_paths,
)
from llama.fused.install import RunFused, is_installed
from llama.fused.mirrored import Mirrored
from llama.fused.offload import HostInputs
from llama.fused.recorded import (
    Beside,
    Recorded,
    RecordedLoss,
    RecordedPass,
    Results,
    is_out_of_memory,
    is_usable,
    recorded_by_all,
)
from llama.model.documents import Documents
from llama.model.kept import Kept
from llama.model.kv_cache import KVCache
from llama.model.transformer import Supervision, Transformer
from llama.notes import note
from llama.parallel.sharded import base_of

T = TypeVar("T")

LONG = 32_768
"""Tokens of a pass above which it is not captured: no host is waited for, and its memory is wanted
elsewhere."""
WORTH = 32
"""Passes that recordings must have served for it to be enough that they are given up where memory
runs out. Where they have served fewer, it does not hold them beside what is kept, and each step
would record anew, which takes the time of a few passes."""
MOST = 32
"""Shapes of training that are captured, and as many of evaluations; others run kernel by kernel.
Each takes some megabytes of its own."""
LAUNCHED = "passes are no longer recorded as CUDA graphs"
OFTEN = 64
"""Passes after which a shape whose micro-batches are filled up for another, which serves them, is
worth a recording of its own: that takes as long as three passes, and filling up a tenth of one."""


class RunCaptured:
    """Calls a model as `run_model` did. The first shape of batches is captured when it comes for
    the second time: the first, of the same rounded sizes, has made all kernels that are compiled
    when they are called, and whatever else is made once. Others of its kind find all of that
    there, and are captured when they come: launched, a pass would want memory for its activations
    beside that of the graphs."""

    def __init__(
        self,
        model: Transformer,
        trained: Mapping[str, nn.Parameter],
        host: HostInputs,
        others: Sequence[Beside] = (),
    ) -> None:
        """`host` has block inputs on their way, `others` other work beside a pass."""
        self._run = model.run_model
        self._trained = dict(trained)
        self._paths = side_paths(model)
        self._host, self._beside = host, (host, *others)
        self._tp = model.tok_embeddings.tp
        self._seen: Counter[Shape] = Counter()
        self._recorded: dict[Shape, Recorded] = {}
        self._losses: dict[Shape, RecordedLoss] = {}
        self._results: Results | None = None
        self._pool: Any = None
        self._places: list[int] = []
        self._records = self._evaluates = self._at_once = True
        """Whether passes are captured, those of evaluations, and those of a shape that comes for
        the first time: until that failed."""
        self.onto: Mirrored | None = None
        """Where gradients are added up, past autograd; None: autograd is given them."""
        self.may_do_with_less = False
        """Whether somebody waits for an OutOfMemoryError, to have the model keep less."""

    def __call__(
        self,
        model: Transformer,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        documents: Documents,
        labels: Supervision | None,
        cache: KVCache | None,
        last: bool,
    ) -> torch.Tensor:
        asked = cache is None and model.training == torch.is_grad_enabled()
        asked = asked and documents.boundaries[-1] <= LONG and self._records
        if labels is None or not asked or is_watched(model):
            arguments = tokens_T, positions_T, documents, labels, cache, last
            if self._recorded and self._tp.size > 1 and documents.boundaries[-1] > LONG:
                # Ranks of one model take no pass again: there is to be room from the start.
                self.stop()
                note(f"{LAUNCHED}: one has more than {LONG:,} tokens, and takes their memory")
            return self._launched(model, arguments, alone=is_watched(model))
        mode = mode_of(model, self._paths)
        shapes = list(shapes_of(documents, len(labels.index_N), mode))
        self._forget_if_moved()
        if mode.trains and self._is_past_hooks():
            found = None
            self._seen[shapes[0]] += 1
        else:
            found = (self._training if mode.trains else self._evaluation)(model, shapes)
        inputs = Inputs(shapes[0], tokens_T.device) if found is None else found.inputs
        inputs.fill(tokens_T, positions_T, documents, labels)
        if found is None:
            return self._launched(model, inputs.arguments())
        if isinstance(found, RecordedLoss):
            return found.forward()
        found.seeds.draw()
        if self.onto is not None:
            return RecordedPass.apply(found, False, self.onto.leaf)  # type: ignore[return-value]
        return RecordedPass.apply(found, True, *self._trained.values())  # type: ignore[return-value]

    def _launched(
        self, model: Transformer, arguments: Sequence[Any], alone: bool = False
    ) -> torch.Tensor:
        """What a pass gives that is no graph, `alone` once graphs were let go of. Where one of no
        training finds no memory beside them it is taken again alone; who trains does so himself."""
        trains = model.training and torch.is_grad_enabled()
        if alone:
            self._let_go()
        elif trains and self._recorded:
            self._make_room_on_host(model, arguments[2].boundaries[-1])
        try:
            return self._run(model, *arguments)
        except torch.OutOfMemoryError:
            if trains or self._tp.size > 1 or not self._recorded:
                raise
        self._let_go()
        return self._run(model, *arguments)

    def _is_past_hooks(self) -> bool:
        """Whether a hook waits for the gradient of a tensor, which a graph would add past it."""
        return self.onto is not None and any(p._backward_hooks for p in self._trained.values())

    def forget(self) -> int:
        """Let go of all that is recorded, with its memory, and say how many passes it has served.
        Shapes are then new again: what comes next may be another way through the model."""
        served = self._results.passes if self._results is not None else 0
        self._let_go()
        self._seen.clear()
        return served

    def _let_go(self) -> None:
        if self._recorded and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # a graph that runs may be the last to hold the host's memory
        self._recorded.clear()
        self._losses.clear()
        self._results = self._pool = None

    def stop(self) -> bool:
        """Have all passes launched from now on, and say whether they were not already."""
        recorded, self._records = self._records, False
        self.forget()
        return recorded

    def _forget_if_moved(self) -> None:
        """A graph goes by addresses: where a parameter was given other memory, it is of no use."""
        places = [p.data_ptr() for p in self._trained.values()]
        if places != self._places:
            self._let_go()
            self._places = places

    def _training(self, model: Transformer, shapes: Sequence[Shape]) -> Recorded | None:
        """What takes a micro-batch of `shapes`, recorded now if that is due. OutOfMemoryError where
        there is no room: what is kept is then to be less."""
        known = serving(self._recorded, shapes)
        shape = self._due(shapes, self._recorded, known)
        if shape is None:
            # A pass that is launched wants memory beside that of graphs. Where there is none a
            # rank alone takes it again; those of one model have to have room from the start.
            if known is None and self._seen[shapes[0]] == 1 and self._tp.size > 1:
                self._let_go()
            return known

        def make() -> Recorded:
            self._make_room_on_host(model, shape.tokens)
            inputs, *places = self._room(model, shape)
            return Recorded(model, self._run, inputs, self._trained, *places)

        found = self._made(shapes[0], make, self.may_do_with_less, known)
        if found is not None and found is not known:
            self._recorded[shape] = found
        return found

    def _evaluation(self, model: Transformer, shapes: Sequence[Shape]) -> RecordedLoss | None:
        """The same without a backward pass. Nothing is recorded before a training pass is: its
        memory, which holds more than an evaluation, serves both, and a first step that is launched
        has what memory it was planned with. Where there is no room evaluations go on without."""
        known = serving(self._losses, shapes)
        shape = self._due(shapes, self._losses, known)
        if shape is None or not self._evaluates or not self._recorded:
            return known

        def make() -> RecordedLoss:
            return RecordedLoss(model, self._run, *self._room(model, shape))

        try:
            found = self._made(shapes[0], make, True, known)
        except torch.OutOfMemoryError:
            self._evaluates, found = False, None
        if not self._evaluates:
            self.forget()  # what the pool took for this recording is free only with the pool
        elif found is not None and found is not known:
            self._losses[shape] = found
        return found

    def _made(
        self, shape: Shape, make: Callable[[], T], may_do_with_less: bool, instead: T | None
    ) -> T | None:
        """What `make` records. Where that fails `instead`, if there is one. Else None where the
        device or a library records no such pass, or memory does not hold it: from now on for all
        passes, and with a note. A shape that has never come before may want to be launched first,
        or the memory of others that have served for long: then for this pass alone.
        OutOfMemoryError if that is taken care of."""
        for other in self._beside:
            other.settle()
            other.forget()
        try:
            return recorded_by_all(self._tp, make)
        except RuntimeError as error:
            if instead is not None:
                return instead
            if is_out_of_memory(error) and may_do_with_less:
                full = isinstance(error, torch.OutOfMemoryError)
                raise (error if full else error.__context__ or error) from None
            new = self._seen[shape] == 1
            if new and not is_out_of_memory(error):
                self._at_once = False
                return None
            if new and self._results is not None and self._results.passes >= WORTH:
                self.forget()
                return None
            note(f"steps are not captured as CUDA graphs: {str(error).splitlines()[0]}")
        finally:
            for other in self._beside:
                other.forget()
        self.stop()
        return None

    def _due(
        self, shapes: Sequence[Shape], recorded: Mapping[Shape, Any], known: Any
    ) -> Shape | None:
        """The shape to record now, for a pass of `shapes` that `known` serves, if anything does:
        once all that is made once is there for it."""
        shape = shapes[0]
        self._seen[shape] += 1
        if len(recorded) >= MOST:
            return None
        if known is not None:
            often = self._seen[shape] == OFTEN and known.inputs.shape.tokens > shape.tokens
            return shape if often else None
        alike = [other for other in recorded if other.is_of_kind(shape)]
        if self._seen[shape] > 1 or (self._at_once and alike):
            return shape.with_room_of(alike)
        return None

    def _make_room_on_host(self, model: Transformer, tokens: int) -> None:
        """For the block inputs of so many tokens that are to lie there. What was recorded for fewer
        is let go of where there is too little: it would hold as much again as was planned."""
        if not (count := model.kept.count(Kept.HOST)):
            return
        weight = model.tok_embeddings.weight
        inputs = count, tokens * model.config.dim * weight.itemsize
        if not self._host.has_room(*inputs):
            self._let_go()
            self._host.make_room(*inputs, weight.device)

    def _room(self, model: Transformer, shape: Shape) -> tuple[Any, ...]:
        """Inputs of `shape`, and what recordings have in common."""
        device = model.tok_embeddings.weight.device
        if self._results is None:
            onto = self.onto or Mirrored(list(self._trained.values()))
            self._results = Results(onto, device)
        if not is_usable(self._pool):
            self._pool = torch.cuda.graph_pool_handle()
        return Inputs(shape, device), self._results, self._pool, self._beside


def capture(model: Transformer) -> str | None:
    """Have the passes of `model` over micro-batches captured, and a note why not where they cannot
    be. Call it after `install`, once the model keeps what it is to keep."""
    if reason := _uncaptured(model):
        return f"steps are not captured as CUDA graphs: {reason}"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert isinstance(model.run_block, RunFused)
    model.run_model = RunCaptured(model, trained, model.run_block.host, list(_others(model)))
    return None


def _others(model: Transformer) -> Iterator[Beside]:
    """A base that is gathered, and shares of sums that other ranks read."""
    if (base := base_of(model.tok_embeddings.weight)) is not None:
        yield base
    if model.tok_embeddings.tp.sums.are_read:
        yield model.tok_embeddings.tp.sums


def add_gradients(model: Transformer, onto: Mirrored, may_do_with_less: bool = False) -> None:
    """Have captured passes of `model` add their gradients to `onto`. Where memory does not hold a
    recording passes are launched, unless it `may_do_with_less`, by who takes an
    OutOfMemoryError."""
    assert isinstance(model.run_model, RunCaptured)
    model.run_model.forget()  # which added them elsewhere
    model.run_model.onto = onto
    model.run_model.may_do_with_less = may_do_with_less


def _uncaptured(model: Transformer) -> str | None:
    if not is_installed(model) or len(model.run_block.covered) < len(model.layers):  # type: ignore
        return "not all blocks are fused"
    weight = model.tok_embeddings.weight
    tp = model.tok_embeddings.tp
    if tp.size > 1 and not tp.sums.are_read:
        return "tensor-parallel ranks exchange within a pass, by other than reading from GPU to GPU"
    if shares_tokens(model):
        return "ranks that share tokens exchange within a pass"
    if weight.dtype == torch.float32:
        return "attention to documents of several lengths is not one kernel in float32"
    if (base := base_of(weight)) is not None and not base.sharers.by_copies:
        return "the base is gathered by other than copies between GPUs of one host"
    return None
