"""The contract with DeepSpeed: whatever it asks of an `mpu` at the stages used here, it gets.

The names are read out of the installed source, so that a version of DeepSpeed that asks for more
fails here and not in a run.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llama.parallel.mesh import DeepSpeedTopology, Mesh, TensorParallel, groups_in_a_row

ASKING = (
    "__init__.py",
    "runtime/base_optimizer.py",
    "runtime/bf16_optimizer.py",
    "runtime/config.py",
    "runtime/engine.py",
    "runtime/fp16/fused_optimizer.py",
    "runtime/fp16/unfused_optimizer.py",
    "runtime/utils.py",
    "runtime/zero/parameter_offload.py",
    "runtime/zero/stage3.py",
    "runtime/zero/stage_1_and_2.py",
    "utils/bwc.py",
    "utils/groups.py",
)
"""Files of DeepSpeed's that are given the `mpu`: ZeRO 0 to 3 in any precision."""

NOT_ASKED = {
    # Only of an object that says it has them: sequence and pipeline parallelism, other Megatrons.
    "get_sequence_parallel_world_size",
    "get_sequence_parallel_rank",
    "get_sequence_parallel_group",
    "get_sequence_data_parallel_world_size",
    "get_sequence_data_parallel_rank",
    "get_sequence_data_parallel_group",
    "get_slice_parallel_rank",
    "get_slice_parallel_world_size",
    "get_slice_parallel_group",
    "get_pipe_parallel_world_size",
    "get_pipe_parallel_group",
    "get_pipeline_model_parallel_world_size",
    "get_pipeline_model_parallel_group",
    # Only of its own `groups` module, which takes the place of the mpu under `tensor_parallel`, a
    # section that is refused here.
    "_init_tp_mesh_device",
    "get_tensor_model_parallel_src_rank",
    # Only for Megatron's own activation checkpointing, which is not used here.
    "get_data_parallel_group_ranks",
}


def source_folder() -> Path:
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def asked_for(path: Path) -> set[str]:
    """Attributes taken of anything called `mpu`, as `mpu.name` or `self.mpu.name`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = getattr(owner, "id", None) or getattr(owner, "attr", None)
            if name == "mpu":
                found.add(node.attr)
    return found


@pytest.fixture(scope="module")
def everything_asked() -> set[str]:
    return set().union(*(asked_for(source_folder() / file) for file in ASKING))


def topology() -> DeepSpeedTopology:
    mesh = SimpleNamespace(
        tensor_parallel=TensorParallel(rank=1, size=2),
        data_parallel_rank=3,
        data_parallel_size=4,
        data_parallel_group="data group",
    )
    return DeepSpeedTopology(cast(Mesh, cast(Any, mesh)))


def test_deepspeed_is_given_all_it_asks_for(everything_asked: set[str]) -> None:
    missing = everything_asked - NOT_ASKED - set(dir(topology()))
    assert not missing, f"deepspeed asks an mpu for {sorted(missing)}"


def test_the_search_finds_what_it_looks_for(everything_asked: set[str]) -> None:
    """Else an empty search would pass the test above."""
    assert {
        "get_model_parallel_group",
        "get_data_parallel_world_size",
        "get_tensor_model_parallel_rank",
    } <= everything_asked


def test_nothing_that_is_not_there_is_said_to_be() -> None:
    """`hasattr` of these would send DeepSpeed into sequence parallelism."""
    assert not NOT_ASKED & set(dir(topology()))
    assert not hasattr(topology(), "initialize_sequence_parallel")


def test_the_answers_are_the_mesh_s() -> None:
    found = topology()
    assert found.get_data_parallel_group() == "data group"
    assert (found.get_data_parallel_rank(), found.get_data_parallel_world_size()) == (3, 4)
    assert (found.get_model_parallel_rank(), found.get_model_parallel_world_size()) == (1, 2)
    assert found.get_tensor_model_parallel_rank() == 1
    assert found.get_tensor_model_parallel_world_size() == 2


def test_a_base_is_shared_by_ranks_in_a_row_that_have_the_same_shard() -> None:
    assert groups_in_a_row(8, 2, 2) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert groups_in_a_row(8, 1, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for degree, count in ((1, 2), (2, 4), (4, 2)):
        groups = groups_in_a_row(16, degree, count)
        assert sorted(rank for ranks in groups for rank in ranks) == [*range(16)]
        assert {(len(ranks), len({rank % degree for rank in ranks})) for ranks in groups} == {
            (count, 1)
        }
