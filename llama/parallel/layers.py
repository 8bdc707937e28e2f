"""fairscale's model-parallel layers, as this model needs them.

They are built empty, each rank its own shard (fairscale's constructors allocate the whole matrix on
every rank), on whatever device is the default, `meta` included. Each sharded parameter says along
which dimension in `shard_dim`; each linear layer may carry a low-rank side path in `lora`.

Shapes: T tokens, I in_features, O out_features, V vocabulary, D dim; `/p` marks a sharded one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairscale.nn.model_parallel import layers as fairscale_layers
from fairscale.nn.model_parallel.mappings import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    reduce_from_model_parallel_region,
)
from torch import nn

from llama.kernels.products import linear
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


def copy_to_shards(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    """Identity; the gradient is summed over the shards."""
    return copy_to_model_parallel_region(x) if tp.size > 1 else x


def reduce_from_shards(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    """Sum over the shards; the gradient passes as it is."""
    return reduce_from_model_parallel_region(x) if tp.size > 1 else x


def gather_from_shards(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    """Join the shards along the last dimension; the gradient is cut up again."""
    return gather_from_model_parallel_region(x) if tp.size > 1 else x


class ColumnParallelLinear(fairscale_layers.ColumnParallelLinear):
    """`y[T, O/p] = x[T, I] W[O/p, I]^T + b[O/p]`: each rank computes some of the outputs.

    Layers with the same input are called by `on`, with one `shared = copy_to_shards(x)`, so that
    its gradient is summed over the ranks once for all of them. An adapter takes x as it is: the
    gradient from there is whole on every rank."""

    def __init__(self, in_features: int, out_features: int, bias: bool, tp: TensorParallel) -> None:
        nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.gather_output = False
        self.tp = tp
        self.output_size_per_partition = tp.divide(out_features, "the outputs of a linear layer")
        self.weight = sharded_parameter(self.output_size_per_partition, in_features, dim=0)
        self.bias = sharded_parameter(self.output_size_per_partition, dim=0) if bias else None
        self.lora: SidePath | None = None

    @property
    def shard_shape(self) -> tuple[int, int]:
        """`(O/p, I)`, this rank's."""
        return self.output_size_per_partition, self.in_features

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
        output = linear(shared, self.weight, self.bias)
        return output if self.lora is None else self.lora(input_, output)


class RowParallelLinear(fairscale_layers.RowParallelLinear):
    """`y[T, O] = sum over ranks of x[T, I/p] W[O, I/p]^T, + b[O]`: each rank takes some inputs."""

    def __init__(self, in_features: int, out_features: int, bias: bool, tp: TensorParallel) -> None:
        nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.input_is_parallel = True
        self.tp = tp
        self.input_size_per_partition = tp.divide(in_features, "the inputs of a linear layer")
        self.weight = sharded_parameter(out_features, self.input_size_per_partition, dim=1)
        self.bias = sharded_parameter(out_features, dim=None) if bias else None
        self.lora: SidePath | None = None

    @property
    def shard_shape(self) -> tuple[int, int]:
        """`(O, I/p)`, this rank's."""
        return self.out_features, self.input_size_per_partition

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        output = reduce_from_shards(linear(input_, self.weight, None), self.tp)
        if self.bias is not None:
            output = output + self.bias
        return output if self.lora is None else self.lora(input_, output)


class VocabParallelEmbedding(fairscale_layers.VocabParallelEmbedding):
    """`y[T, D]` from `weight[V/p, D]`: each rank looks up the tokens of its range."""

    def __init__(self, num_embeddings: int, embedding_dim: int, tp: TensorParallel) -> None:
        nn.Module.__init__(self)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = None
        self.max_norm = None
        self.norm_type = 2.0
        self.scale_grad_by_freq = False
        self.sparse = False
        self.tp = tp
        self.weight = vocabulary_rows(num_embeddings, embedding_dim, tp)
        self.num_embeddings_per_partition = self.weight.shape[0]
        self.vocab_start_index = tp.rank * self.num_embeddings_per_partition
        self.vocab_end_index = self.vocab_start_index + self.num_embeddings_per_partition

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        if self.tp.size == 1:
            return F.embedding(input_, self.weight)
        return super().forward(input_)
