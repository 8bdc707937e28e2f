"""What a checkpoint holds comes back bit for bit, and nothing else is taken for one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama.adapters import peft_format
from llama.checkpoint import Store, read
from llama.checkpoint.manifest import FORMAT, manifest_text
from llama.checkpoint.whole import contents
from llama.engine.state import EngineState
from llama.errors import TrainingError, UserError
from tests.support.origin import about
from tests.unit.checkpoint.checkpoint_case import ADAPTER, MOST, SHAPES, checkpoint, same

FILES = (
    *("adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
    *("optimizer.safetensors", "trainer.json", "manifest.json"),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return Store(tmp_path / "checkpoints").save(checkpoint(), ADAPTER, keep=3)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        read(folder, MOST)
    (line,) = refused.value.problems
    return line


def test_what_was_saved_comes_back(saved: Path) -> None:
    files = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert files == set(FILES)
    assert same(read(saved, MOST), checkpoint())
    masters = peft_format.load_state(saved / "adapter")
    assert all(torch.equal(masters[name], checkpoint().engine.masters[name]) for name in SHAPES)


def test_what_says_what_the_adapter_is_comes_with_it_and_is_checked(tmp_path: Path) -> None:
    """It is not read again; a run from before it was written has none, as above."""
    described = replace(checkpoint(), beside=about(3).files())
    folder = Store(tmp_path).save(described, ADAPTER, keep=3)
    assert same(read(folder, MOST), checkpoint())
    for name, content in about(3).files().items():
        path = folder / "adapter" / name
        assert path.read_bytes() == content
        path.write_bytes(content.replace(b"a", b"e", 1))
        assert str(path) in refusal(folder)
        path.write_bytes(content)


def test_each_of_1000_flipped_bits_is_refused(saved: Path) -> None:
    """Anywhere in the folder: a file is drawn, then one of its bits, so that small files get as
    many as large ones."""
    draw = random.Random(0)
    for _ in range(1000):
        path = saved / draw.choice(FILES)
        content = path.read_bytes()
        bit = draw.randrange(8 * len(content))
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        with pytest.raises(UserError):
            read(saved, MOST)
        path.write_bytes(content)
    assert same(read(saved, MOST), checkpoint())


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_is_refused(name: str, saved: Path) -> None:
    path = saved / name
    content = path.read_bytes()
    for length in (0, 1, len(content) - 1):
        path.write_bytes(content[:length])
        assert str(path) in refusal(saved)
    path.unlink()
    line = refusal(saved)
    assert str(path) in line and "does not exist" in line


def test_files_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, other = (store.save(checkpoint(step), ADAPTER, keep=3) for step in (3, 4))
    for name in FILES:
        if (one / name).read_bytes() == (other / name).read_bytes():
            continue  # adapter_config.json: the same adapter
        mixed = tmp_path / "mixed"
        shutil.copytree(one, mixed)
        shutil.copy(other / name, mixed / name)
        refusal(mixed)
        shutil.rmtree(mixed)


def rewritten(folder: Path, change: Callable[[dict], None]) -> None:
    """The manifest, changed by someone who knows how its own hash is made."""

    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    del document["sha256"]
    path.write_bytes(manifest_text(document))


def test_names_that_lead_elsewhere_are_refused(saved: Path) -> None:
    (outside := saved.parent.parent / "secret").write_bytes(b"x")

    def lead_out(document: dict) -> None:
        document["files"]["../../secret"] = document["files"].pop("trainer.json")

    rewritten(saved, lead_out)
    assert "lists other files" in refusal(saved)
    assert outside.exists()


def test_links_are_not_followed(saved: Path, tmp_path: Path) -> None:
    for name in ("trainer.json", "adapter"):
        shutil.move(saved / name, tmp_path / "moved")
        (saved / name).symlink_to(tmp_path / "moved")
        assert "is a link" in refusal(saved)
        (saved / name).unlink()
        shutil.move(tmp_path / "moved", saved / name)
    assert same(read(saved, MOST), checkpoint())


def test_a_newer_format_is_refused_by_name(saved: Path) -> None:
    rewritten(saved, lambda document: document.update(format=FORMAT + 1))
    assert f"format {FORMAT + 1} is a newer program's" in refusal(saved)


def test_an_older_format_is_refused_by_name(saved: Path) -> None:
    rewritten(saved, lambda document: document.update(format=FORMAT - 1))
    assert f"format {FORMAT - 1} is an older program's" in refusal(saved)


def test_declared_sizes_are_bounded(saved: Path) -> None:
    def declare(document: dict) -> None:
        document["files"]["optimizer.safetensors"]["bytes"] = 1 << 40

    rewritten(saved, declare)
    assert "more than any run needs" in refusal(saved)


def test_a_checkpoint_is_three_numbers_a_parameter() -> None:
    """On a tensor large enough for the rest not to matter."""
    shape, name = (4096, 256), "layers.0.attention.wq.lora.b"
    masters, exp_avg, exp_avg_sq = ({name: torch.zeros(shape)} for _ in range(3))
    state = EngineState(masters, exp_avg, exp_avg_sq, {"steps": 3})
    size = sum(map(len, contents(replace(checkpoint(), engine=state), ADAPTER).values()))
    assert size < 3.001 * 4 * shape[0] * shape[1] + 10_000


def test_what_is_not_the_adapter_is_not_saved() -> None:
    """As a frozen base that has slipped in among the moments."""
    state = checkpoint().engine
    state.exp_avg["tok_embeddings.weight"] = torch.zeros(600, 512)
    with pytest.raises(TrainingError, match="something other than the adapter"):
        contents(checkpoint=replace(checkpoint(), engine=state), config=ADAPTER)


def test_a_value_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(checkpoint(3), ADAPTER, keep=1)
    spoilt = checkpoint(4)
    next(iter(spoilt.engine.exp_avg.values()))[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="exp_avg: not finite"):
        store.save(spoilt, ADAPTER, keep=1)
    assert store.steps() == [3] and [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_the_newest_that_is_whole_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (3, 4, 10):
        store.save(checkpoint(step), ADAPTER, keep=3)
    (store.path(10) / "trainer.json").unlink()
    (tmp_path / "step-04").mkdir()  # no name of ours
    shutil.copytree(store.path(4), store.path(11))
    found, refused = store.newest(MOST)
    assert found is not None and same(found, checkpoint(4))
    assert [line.split(": ")[0] for line in refused] == [
        str(store.path(11)),
        str(store.path(10) / "trainer.json"),
    ]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """Those of later steps are of an earlier life of the run, and are none of the newest `keep`."""
    store = Store(tmp_path)
    for step in (1, 2, 9, 3, 4):
        store.save(checkpoint(step), ADAPTER, keep=2)
    assert store.steps() == [9, 4, 3]
