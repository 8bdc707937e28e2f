"""Linear layers and the embedding, each rank holding its shard (Shoeybi et al., "Megatron-LM",
2019, section 3).

They are built empty on whatever device is the default, `meta` included, and filled from the files
slice by slice. Each sharded parameter says along which dimension in `shard_dim`. What ranks
exchange goes through `TensorParallel`, which a layer is given.

Shapes: T tokens, I in_features, O out_features, V vocabulary, D dim; `/p` marks a sharded one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from llama.base.dense import Dense
from llama.base.frozen import FrozenWeight, frozen_product
from llama.parallel.dropout import one_mask
from llama.parallel.mesh import TensorParallel
from llama.parallel.side_path import SidePath


def sharded_parameter(*shape: int, dim: int | None) -> nn.Parameter:
    """An empty parameter of this rank's shape, marked as sharded along `dim` (None: replicated)."""
    parameter = nn.Parameter(torch.empty(*shape))
    mark_shard(parameter, dim)
    return parameter


def vocabulary_rows(size: int, width: int, tp: TensorParallel) -> nn.Parameter:
    """An empty parameter of this rank's rows of a matrix with one row for each token, `[V/p, D]`.

    Shares are equal, so where the degree does not divide `size` they are rounded up, and the last
    ranks' end in rows that stand for no token. `real_size` on the parameter keeps the true number:
    loading fills no more, and neither loss nor logits know of the rest."""
    parameter = sharded_parameter(-(-size // tp.size), width, dim=0)
    parameter.real_size = size  # type: ignore[attr-defined]
    return parameter


def real_rows(size: int, share: int, tp: TensorParallel) -> int:
    """How many of this rank's `share` rows stand for one of `size` tokens."""
    return min(max(size - tp.rank * share, 0), share)


def mark_shard(parameter: nn.Parameter, dim: int | None) -> None:
    """Say along which dimension `parameter` is sharded. `model_parallel` is DeepSpeed's name for
    it: a sharded tensor without it is left out of the gradient norm on every rank but the first."""
    parameter.shard_dim = dim  # type: ignore[attr-defined]
    if dim is not None:
        parameter.model_parallel = True  # type: ignore[attr-defined]


def shard_dim(parameter: nn.Parameter) -> int | None:
    """The dimension along which `parameter` is sharded, or None if every rank holds all of it."""
    return getattr(parameter, "shard_dim", None)


def share_of(whole: torch.Tensor, parameter: nn.Parameter, tp: TensorParallel) -> torch.Tensor:
    """This rank's share of `whole`, a value of all of `parameter`. Rows that only fill up a share
    are zero."""
    dim = shard_dim(parameter)
    if dim is None or tp.size == 1:
        return whole
    size = whole.shape[dim]
    length = -(-size // tp.size)
    start = min(tp.rank * length, size)
    share = whole.narrow(dim, start, min(length, size - start))
    missing = length - share.shape[dim]
    return F.pad(share, (0, 0, 0, missing)) if missing else share


def joined(share: torch.Tensor, parameter: nn.Parameter, tp: TensorParallel) -> torch.Tensor:
    """The inverse of `share_of`. Every rank of the group must call it."""
    whole = tp.join(share, shard_dim(parameter))
    size = getattr(parameter, "real_size", None)
    return whole if size is None else whole[:size]


def copy_to_shards(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    """Identity; the gradient is summed over the shards."""
    return tp.copied(x)


def reduce_from_shards(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    """Sum over the shards; the gradient passes as it is."""
    return tp.reduced(x)


def gather_from_shards(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    """Join the shards along the last dimension; the gradient is cut up again."""
    return tp.gathered(x)


def linear(
    x_TI: torch.Tensor,
    weight_OI: nn.Parameter,
    bias_O: torch.Tensor | None = None,
    kind: type[FrozenWeight] = Dense,
) -> torch.Tensor:
    """`x W^T + b`, `[T, O]` in the type of `x`. A frozen weight is multiplied as its `kind` does
    and keeps nothing of `x`; a trained one by plain autograd."""
    if bias_O is not None:
        bias_O = bias_O.to(x_TI.dtype)
    if weight_OI.requires_grad and torch.is_grad_enabled():
        return F.linear(x_TI, weight_OI.to(x_TI.dtype), bias_O)
    y_TO = frozen_product(x_TI, kind(weight_OI))
    return y_TO if bias_O is None else y_TO + bias_O


class ParallelLinear(nn.Module):
    """What the two linear layers share: a weight `[O, I]` cut along one dimension, a bias, and room
    for an adapter."""

    shard_shape: tuple[int, int]
    """`(O, I)` of this rank's weight. The weight's own shape does not say it under ZeRO-3."""

    first_input: int
    """Which of all inputs is the first of this rank's."""

    def __init__(self, in_features: int, out_features: int, tp: TensorParallel) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.tp = tp
        self.kind: type[FrozenWeight] = Dense
        """How the weight is held where it is frozen."""
        self.lora: SidePath | None = None
        """The adapter, whatever its kind."""


class ColumnParallelLinear(ParallelLinear):
    """`y[T, O/p] = x[T, I] W[O/p, I]^T + b[O/p]`: each rank computes some of the outputs.

    Layers with the same input are called by `each_of`, with one `shared = copy_to_shards(x)`, so
    that its gradient is summed over the ranks once for all of them. An adapter takes x as it is:
    the gradient from there is whole on every rank."""

    def __init__(self, in_features: int, out_features: int, bias: bool, tp: TensorParallel) -> None:
        super().__init__(in_features, out_features, tp)
        rows = tp.divide(out_features, "the outputs of a linear layer")
        self.shard_shape = rows, in_features
        self.first_input = 0
        self.weight = sharded_parameter(rows, in_features, dim=0)
        self.bias = sharded_parameter(rows, dim=0) if bias else None

    def on(self, x: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        """`self(x)` for a layer that shares its input. It is given no tensor that it does not use:
        ZeRO-3 keeps a module's weights until each of its inputs has had its gradient."""
        return self(shared, copied=True) if self.lora is None else self(x, shared)

    def forward(
        self, input_: torch.Tensor, shared: torch.Tensor | None = None, copied: bool = False
    ) -> torch.Tensor:
        """`shared` is `copy_to_shards(input_)`; `copied` says that `input_` itself is."""
        if shared is None:
            shared = input_ if copied else copy_to_shards(input_, self.tp)
        output = linear(shared, self.weight, self.bias, self.kind)
        return output if self.lora is None else self.lora(input_, output)


def each_of(
    layers: tuple[ColumnParallelLinear, ...], x: torch.Tensor, tp: TensorParallel
) -> tuple[torch.Tensor, ...]:
    """The outputs of layers that read one input; their adapters see it under one mask."""
    shared = copy_to_shards(x, tp)
    with one_mask():
        return tuple(layer.on(x, shared) for layer in layers)


class RowParallelLinear(ParallelLinear):
    """`y[T, O] = sum over ranks of x[T, I/p] W[O, I/p]^T, + b[O]`: each rank takes some inputs."""

    def __init__(self, in_features: int, out_features: int, bias: bool, tp: TensorParallel) -> None:
        super().__init__(in_features, out_features, tp)
        columns = tp.divide(in_features, "the inputs of a linear layer")
        self.shard_shape = out_features, columns
        self.first_input = tp.rank * columns
        self.weight = sharded_parameter(out_features, columns, dim=1)
        self.bias = sharded_parameter(out_features, dim=None) if bias else None

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        output = reduce_from_shards(linear(input_, self.weight, None, self.kind), self.tp)
        if self.bias is not None:
            output = output + self.bias
        return output if self.lora is None else self.lora(input_, output)


class VocabParallelEmbedding(nn.Module):
    """`y[T, D]` from `weight[V/p, D]`: each rank looks up the tokens of its range, gives zeros for
    the others, and the ranks' results are summed."""

    def __init__(self, num_embeddings: int, embedding_dim: int, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.weight = vocabulary_rows(num_embeddings, embedding_dim, tp)
        self.rows = self.weight.shape[0]
        self.first = tp.rank * self.rows

    def forward(self, tokens_T: torch.Tensor) -> torch.Tensor:
        if self.tp.size == 1:
            return F.embedding(tokens_T, self.weight)
        local_T = tokens_T - self.first
        outside_T = (local_T < 0) | (local_T >= self.rows)
        found_TD = F.embedding(local_T.masked_fill(outside_T, 0), self.weight)
        return reduce_from_shards(found_TD.masked_fill(outside_T.unsqueeze(-1), 0.0), self.tp)
