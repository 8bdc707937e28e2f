"""A state that lies in several files is read back at any topology, or refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llama.checkpoint import Store, read
from llama.checkpoint.content import most_bytes
from llama.checkpoint.manifest import MANIFEST, manifest_text
from llama.checkpoint.saving import ShardSaver
from llama.checkpoint.shards import KEYS, MASTER, ShardedState, ShardReader, file_of
from llama.engine import Piece
from llama.errors import TrainingError, UserError
from llama.files.safetensors import TensorFile
from llama.parallel.layers import mark_shard
from llama.parallel.mesh import SINGLE, Mesh, TensorParallel
from tests.support.failing_calls import At, before_each_call, killed_at
from tests.support.failing_calls import operations as operations_of
from tests.unit.checkpoint.checkpoint_case import checkpoint

ALONE = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]
SHAPES = {"rows": (7, 4), "columns": (4, 8), "norm": (5,)}
"""The first of a size that no degree divides, as a vocabulary may be."""
DIMS = {"rows": 0, "columns": 1, "norm": None}
MOST = most_bytes(100)


def whole() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for key in KEYS
    }


def parameters(degree: int) -> dict[str, nn.Parameter]:
    found = {}
    for name, shape in SHAPES.items():
        found[name] = nn.Parameter(torch.empty(shape))
        mark_shard(found[name], DIMS[name])
    return found


def shares(value: torch.Tensor, dim: int | None, degree: int) -> list[torch.Tensor]:
    """Written out: what each rank of `degree` has."""
    if dim is None:
        return [value]
    length = -(-value.shape[dim] // degree)
    padded = torch.cat([value, torch.zeros(degree * length - value.shape[0], *value.shape[1:])])
    return list((padded if dim == 0 else value).split(length, dim))


def write(folder: Path, degree: int, ranks: int) -> ShardedState:
    """As `degree` shards and `ranks` copies that have a part each would write it."""
    state = ShardedState(folder, degree, SHAPES, DIMS, {})
    folder.mkdir(exist_ok=True)
    for copy in range(ranks):
        for shard in range(degree):
            pieces, values = [], []
            for name in SHAPES:
                if DIMS[name] is None and shard:
                    continue
                of_keys = [shares(whole()[key][name], DIMS[name], degree)[shard] for key in KEYS]
                size = of_keys[0].numel()
                start, end = copy * size // ranks, (copy + 1) * size // ranks
                if start < end:
                    pieces.append(Piece(name, shard, start, end))
                    values += [
                        (f"{name}.{key}", value.flatten()[start:end])
                        for key, value in zip(KEYS, of_keys, strict=True)
                    ]
            file = file_of(copy * degree + shard)
            state.files[file] = pieces
            writer = TensorFile(folder / file, [(n, v.dtype, tuple(v.shape)) for n, v in values])
            for name, value in values:
                writer.add(name, value)
            writer.finish()
    return state


@pytest.mark.parametrize("now", [1, 2, 4])
@pytest.mark.parametrize(("degree", "ranks"), [(1, 1), (1, 3), (2, 2), (4, 1)])
def test_any_topology_reads_what_any_other_wrote(
    degree: int, ranks: int, now: int, tmp_path: Path
) -> None:
    written = write(tmp_path / "x", degree, ranks)
    assert written.problems(set(written.files)) == []
    state = ShardedState.of_json(tmp_path / "x", json.loads(json.dumps(written.as_json())), {})
    assert state == written
    for rank in range(now):
        reader = ShardReader(state, parameters(now), TensorParallel(rank, now, None))
        reader.require_files()
        for name in SHAPES:
            expected = {
                key: shares(whole()[key][name], DIMS[name], now)[0 if DIMS[name] is None else rank]
                for key in KEYS
            }
            assert torch.equal(reader.master(name), expected[MASTER])
            for key in KEYS[1:]:
                size = expected[key].numel()
                for start, end in ((0, size), (1, size - 1), (size, size)):
                    found = reader.moment(name, key, start, end)
                    assert torch.equal(found, expected[key].flatten()[start:end])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pieces: pieces.pop(), "is not all there"),
        (lambda pieces: pieces.append(pieces[0]), "leave a gap or overlap"),
        (lambda pieces: pieces.append(Piece("other", 0, 0, 1)), "a piece of no parameter"),
        (lambda pieces: pieces.append(Piece("norm", 1, 0, 1)), "a piece of no parameter"),
    ],
)
def test_pieces_that_are_not_the_state_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    state = write(tmp_path / "x", 1, 1)
    change(state.files["rank-0.safetensors"])
    (problem,) = state.problems(set(state.files))
    assert said in problem
    assert state.problems({"rank-0.safetensors", "rank-1.safetensors"}) != []


class Parts:
    """What one rank alone would hand to a saver."""

    spoilt = False

    def pieces(self) -> list[Piece]:
        return [Piece(n, 0, 0, v.numel()) for n, v in whole()[MASTER].items()]

    def values(self, piece: Piece, key: str | None) -> torch.Tensor:
        value = whole()[key or MASTER][piece.name].flatten()
        return value * float("nan") if self.spoilt else value

    def shard_dims(self) -> dict[str, int | None]:
        return DIMS

    def replica_problems(self) -> list[str]:
        return []


def save(store: Store, step: int, keep: int = 2, spoilt: bool = False) -> None:
    parts = Parts()
    parts.spoilt = spoilt
    engine: Any = SimpleNamespace(
        parts=parts, mesh=ALONE, steps=step, counters=lambda: {"steps": step}
    )
    saver = ShardSaver(engine, store, keep, SHAPES)
    saver.save(lambda state: replace(checkpoint(step), engine=state), lambda: None, last=True)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "torch.distributed.all_gather_object", lambda every, own: every.__setitem__(0, own)
    )


@pytest.mark.usefixtures("alone")
def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (1, 2, 3):
        save(store, step)
    assert store.steps() == [3, 2]
    found, refused = store.newest(MOST)
    assert found is not None and not refused
    assert (found.step, found.run, found.shapes) == (3, checkpoint(3).run, SHAPES)
    assert isinstance(found.engine, ShardedState)
    reader = ShardReader(found.engine, parameters(1), SINGLE)
    assert all(torch.equal(reader.master(name), whole()[MASTER][name]) for name in SHAPES)


@pytest.mark.usefixtures("alone")
def test_each_of_500_flipped_bits_is_refused(tmp_path: Path) -> None:
    save(Store(tmp_path), 3)
    folder, draw = tmp_path / "step-3", random.Random(0)
    files = sorted(folder.iterdir())
    for _ in range(500):
        path = draw.choice(files)
        content = path.read_bytes()
        bit = draw.randrange(8 * len(content))
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        with pytest.raises(UserError):
            read(folder, MOST)
        path.write_bytes(content)
    assert read(folder, MOST).step == 3


@pytest.mark.usefixtures("alone")
def test_what_is_missing_or_too_much_is_refused(tmp_path: Path) -> None:
    save(Store(tmp_path), 3)
    folder = tmp_path / "step-3"
    with pytest.raises(UserError, match="more than any run needs here"):
        read(folder, 100)
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    del document["sha256"]
    document["files"]["rank-2.safetensors"] = document["files"]["rank-0.safetensors"]
    path.write_bytes(manifest_text(document))
    with pytest.raises(UserError, match="lists other files than a checkpoint's"):
        read(folder, MOST)


@pytest.mark.usefixtures("alone")
def test_a_value_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store, 2)
    with pytest.raises(TrainingError, match="rows: master: not finite"):
        save(store, 3, spoilt=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


@pytest.mark.usefixtures("alone")
def test_an_error_and_a_kill_at_every_operation(tmp_path: Path) -> None:
    """The checkpoint before it is whole, or the new one is."""

    def store_of(name: str) -> Store:
        store = Store(tmp_path / name)
        save(store, 1)
        save(store, 2)
        return store

    counted = store_of("counted")
    count, reached = operations_of(lambda: save(counted, 3)), set()
    assert count > 20
    for index in range(count):
        for way in ("error", "kill"):
            store = store_of(f"{way}-{index}")
            if way == "kill":
                killed_at(index, lambda store=store: save(store, 3))
            else:

                def fail() -> None:
                    raise OSError(28, "No space left on device")

                with before_each_call(At(index, fail)):
                    try:
                        save(store, 3)
                    except TrainingError as error:
                        assert "No space left on device" in str(error)
            found, refused = store.newest(MOST)
            assert found is not None and not refused
            reached.add(found.step)
            store.tidy()
            save(store, 3)
            assert store.steps()[:2] == [3, 2]
    assert reached == {2, 3}
