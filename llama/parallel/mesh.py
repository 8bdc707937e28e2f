"""Degrees of parallelism to process groups, and the small object that DeepSpeed asks about them."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups
from fairscale.nn.model_parallel import mappings

from llama.errors import TrainingError, UserError
from llama.files import life
from llama.parallel.sequence import ALONE, SequenceParallel
from llama.parallel.sums import Sums

PATIENCE = timedelta(hours=2)
"""How long ranks wait for one that reads or hashes files: 800 GB at 200 MB/s take over an hour."""


@dataclass(frozen=True)
class TensorParallel:
    """This rank's place among the ranks that share one copy of the model. `group` is None where
    that is this rank alone; then every collective is the identity."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    sums: Sums = field(init=False, compare=False, repr=False)
    """Over `group`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sums", Sums(self.group))

    def copied(self, x: torch.Tensor) -> torch.Tensor:
        """`x` itself; its gradient is summed over the group."""
        return mappings.copy_to_model_parallel_region(x) if self._exchanges() else x

    def reduced(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of `x` over the group, in its place; its gradient passes as it is."""
        if not x.requires_grad:
            self.all_reduce_(x)
            return x
        return mappings.reduce_from_model_parallel_region(x) if self._exchanges() else x

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """The `x` of all ranks joined along the last dimension; the gradient is cut up again."""
        return mappings.gather_from_model_parallel_region(x) if self._exchanges() else x

    def _exchanges(self) -> bool:
        """Whether there is anyone to exchange with. fairscale's differentiable collectives know one
        group, its own, which therefore has to be this one."""
        if self.size == 1:
            return False
        assert self.group is fairscale_groups.get_model_parallel_group()
        return True

    def all_reduce_(
        self, tensor: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
    ) -> None:
        """Reduce `tensor` in place over the group."""
        self.sums.all_reduce_(tensor, op)

    def every(self, x: torch.Tensor) -> torch.Tensor:
        """The `x` of each rank of the group, `[ranks, *x.shape]`. Every rank must call it."""
        return self.sums.every(x)

    def highest(self, number: int) -> int:
        """Of the numbers that the group's ranks give. Every rank of the group must call it."""
        if self.group is None:
            return number
        told = torch.tensor(number)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.group)
        return int(told)

    def join(self, shard: torch.Tensor, dim: int | None) -> torch.Tensor:
        """The whole of a tensor cut along `dim` (None: it is whole already). Every rank of the
        group must call it."""
        if dim is None or self.group is None:
            return shard
        shards = [torch.empty_like(shard) for _ in range(self.size)]
        dist.all_gather(shards, shard.contiguous(), group=self.group)
        return torch.cat(shards, dim=dim)

    def from_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """The `tensor` that the group's first rank gives. Every rank of the group must call it,
        with one of that shape."""
        if self.group is not None:
            tensor = tensor.contiguous()
            dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def of_first(self, numbers: list[int]) -> list[int]:
        """The `numbers` that the group's first rank gives. Every rank of the group must call it,
        with as many."""
        if self.group is None:
            return numbers
        told = torch.tensor(numbers)
        dist.broadcast(told, group=self.group, group_src=0)
        return told.tolist()

    def divide(self, size: int, what: str) -> int:
        """This rank's share of `size`; refuses what does not divide, naming `what`."""
        if size % self.size:
            raise UserError(
                f"--tensor_parallel {self.size} does not divide {what} ({size}): "
                f"choose a divisor of {size}"
            )
        return size // self.size


SINGLE = TensorParallel()
"""No tensor parallelism: the whole model on this rank."""


@dataclass(frozen=True)
class Mesh:
    """Where this rank stands: in the world, among the model's shards, among the data's shares, and
    among those that share a micro-batch's tokens."""

    rank: int
    world_size: int
    tensor_parallel: TensorParallel
    data_parallel_rank: int
    data_parallel_size: int
    data_parallel_group: dist.ProcessGroup
    """Over which gradients are summed and ZeRO parts what it parts: the ranks of one shard, those
    that share tokens among them."""
    sequence_parallel: SequenceParallel = ALONE
    base_sharers: int = 1
    """How many data-parallel ranks in a row, this one among them, may hold one frozen base together
    (`llama/parallel/sharded.py`), each the same shard of the model; 1: none of them does."""
    base_group: dist.ProcessGroup | None = None
    """Those ranks; None where it is this one alone."""

    @property
    def readers(self) -> int:
        """How many of the data-parallel ranks read rows of their own: a step is of micro-batch x
        accumulation x so many rows."""
        return self.data_parallel_size // self.sequence_parallel.size

    @property
    def reader(self) -> int:
        """Which of them this rank is; those that share tokens are the same one."""
        return self.data_parallel_rank // self.sequence_parallel.size

    @property
    def exchanges(self) -> bool:
        """Whether ranks exchange within a pass: those of one model, of one row, or of one base."""
        sizes = self.tensor_parallel.size, self.sequence_parallel.size
        return max(sizes) > 1 or self.base_group is not None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def highest(self, *numbers: int) -> list[int]:
        """Of each number the highest that any rank gives. Every rank must call it."""
        if self.world_size == 1:
            return list(numbers)
        highest = torch.tensor(numbers)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return highest.tolist()

    def of_main(self, numbers: list[int]) -> list[int]:
        """The `numbers` that the main rank gives. Every rank must call it, with as many."""
        if self.world_size == 1:
            return numbers
        told = torch.tensor(numbers)
        dist.broadcast(told, src=0)
        return told.tolist()

    def wait(self) -> None:
        """Until every rank has come here, as long as it may take one of them to read its files: a
        collective gives up after minutes. `TrainingError` at once where a rank has ended, and after
        `PATIENCE`."""
        if self.world_size == 1:
            return
        options = dist.BarrierOptions()
        options.timeout, options.device = PATIENCE, torch.device("cpu")  # gloo, wherever it runs
        assert dist.group.WORLD is not None
        try:
            with life.excused():
                dist.group.WORLD.barrier(options).wait()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise TrainingError(f"rank {self.rank} waited for another in vain: {reason}") from error

    def title(self, joined: str) -> str:
        """The degrees for a reader, as `tensor-parallel 2 x data-parallel 4`; `joined` is the sign
        between the two words of each."""
        degrees = {
            "tensor": self.tensor_parallel.size,
            "sequence": self.sequence_parallel.size,
            "data": self.readers,
        }
        return " x ".join(
            f"{name}{joined}parallel {size}"
            for name, size in degrees.items()
            if size > 1 or name != "sequence"
        )

    def as_json(self) -> dict[str, int]:
        """The topology, for `run.json`."""
        return {
            "world_size": self.world_size,
            "tensor_parallel": self.tensor_parallel.size,
            "sequence_parallel": self.sequence_parallel.size,
            "data_parallel": self.readers,
        }


def create_mesh(tensor_parallel: int, sequence_parallel: int = 1, base_sharers: int = 1) -> Mesh:
    """Build the process groups; `torch.distributed` must be up. Adjacent ranks share a model; of
    the ranks that hold one shard, those next to each other share a micro-batch's tokens, and
    `base_sharers` in a row, which must divide them, a base:

        4 ranks, tensor 2 x sequence 2     shards 0-1, 2-3     tokens 0-2, 1-3

    fairscale would quietly clamp a degree larger than the world, so degrees are checked first."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    for option, product in (
        (f"--tensor_parallel {tensor_parallel}", tensor_parallel),
        (f"--sequence_parallel {sequence_parallel}", tensor_parallel * sequence_parallel),
    ):
        if world_size % product:
            raise UserError(
                f"{option}: groups of {product} do not divide the {world_size} processes of this "
                "run: start a multiple of it"
            )
    if not fairscale_groups.model_parallel_is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # fairscale announces itself
            fairscale_groups.initialize_model_parallel(tensor_parallel)
    group = fairscale_groups.get_model_parallel_group() if tensor_parallel > 1 else None
    data_parallel_group = fairscale_groups.get_data_parallel_group()
    _require_one_number(base_sharers, world_size)
    return Mesh(
        rank=rank,
        world_size=world_size,
        tensor_parallel=TensorParallel(rank % tensor_parallel, tensor_parallel, group),
        data_parallel_rank=rank // tensor_parallel,
        data_parallel_size=world_size // tensor_parallel,
        data_parallel_group=data_parallel_group,
        base_sharers=base_sharers,
        base_group=_base_group(tensor_parallel, base_sharers, data_parallel_group),
        sequence_parallel=SequenceParallel(
            rank // tensor_parallel % sequence_parallel,
            sequence_parallel,
            _group_in_a_row(tensor_parallel, sequence_parallel),
        ),
    )


def _require_one_number(base_sharers: int, world_size: int) -> None:
    """Each rank has it from what its own launcher says of its own host."""
    if world_size == 1:
        return
    most = torch.tensor([base_sharers, -base_sharers])
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    high, low = most[0].item(), -most[1].item()
    if high != low:
        raise UserError(
            f"--shard_base: it comes to {low} data-parallel ranks on one host and to {high} on "
            "another: give all hosts as many ranks, or give all, or a number that divides them"
        )


def _base_group(
    tensor_parallel: int, sharers: int, data_parallel: dist.ProcessGroup
) -> dist.ProcessGroup | None:
    if sharers == dist.get_world_size(data_parallel) > 1:
        return data_parallel
    return _group_in_a_row(tensor_parallel, sharers)


def _group_in_a_row(tensor_parallel: int, size: int) -> dist.ProcessGroup | None:
    """This rank's own of `groups_in_a_row`; None where that is this rank alone. Every rank makes
    every group, in one order: on GPUs each is split off a communicator that all of them are in."""
    if size == 1:
        return None
    own = None
    for ranks in groups_in_a_row(dist.get_world_size(), tensor_parallel, size):
        group = dist.new_group(ranks)
        own = group if dist.get_rank() in ranks else own
    assert isinstance(own, dist.ProcessGroup)
    return own


def groups_in_a_row(world_size: int, tensor_parallel: int, size: int) -> list[list[int]]:
    """Of all ranks the groups of `size` data-parallel ones in a row, all with the same shard of the
    model."""
    length = size * tensor_parallel
    return [
        list(range(start + shard, start + length, tensor_parallel))
        for start in range(0, world_size, length)
        for shard in range(tensor_parallel)
    ]


class DeepSpeedTopology:
    """What DeepSpeed calls its `mpu`: the names it may ask for, and no others.

    fairscale's own module lacks `get_tensor_model_parallel_*`, which newer parts of DeepSpeed
    prefer; an object of our own can be held to a contract by a test."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def get_model_parallel_rank(self) -> int:
        return self._mesh.tensor_parallel.rank

    def get_model_parallel_world_size(self) -> int:
        return self._mesh.tensor_parallel.size

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return fairscale_groups.get_model_parallel_group()

    def get_data_parallel_rank(self) -> int:
        return self._mesh.data_parallel_rank

    def get_data_parallel_world_size(self) -> int:
        return self._mesh.data_parallel_size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.data_parallel_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group
