"""Whatever bytes an outside file holds, a reader gives a result or a UserError: no other exception,
no code run, bounded memory."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama.assembly.model import check_adapter
from llama.checkpoint import read
from llama.checkpoint.manifest import MANIFEST, manifest, written
from llama.checkpoint.whole import contents
from llama.data.prepare import Reading, prepare
from llama.errors import UserError
from llama.files.atomic import write_folder
from llama.launch.hostfile import HOST_NAME, read_hostfile
from llama.settings import TrainOptions, deepspeed_json
from llama.settings.options import parse
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template
from llama.weights.open_model import open_model
from tests.bad_inputs.setting import build
from tests.fuzz.mutations import spoilt_bytes, spoilt_json
from tests.support.tiny_runs import CONFIG
from tests.support.tokenizer_files import (
    CHATML_SOURCE,
    byte_description,
    byte_tokenizer,
    gguf_of,
    write_gguf,
)
from tests.unit.checkpoint.checkpoint_case import ADAPTER, MOST, checkpoint

MEMORY = 512 << 20
"""Bytes that the process may grow by over all cases of a reader."""


class Payload:
    """Unpickling this makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sound files of every kind, in the folder where the tests run."""
    folder = build(tmp_path_factory.mktemp("fuzz") / "sound")
    write_gguf(folder / "tokenizer.gguf", **gguf_of(byte_description(), scores=[0.5] * 261))
    (folder / "tokenizer.model").write_bytes(sentencepiece())
    (folder / "chat.jinja").write_text(CHATML_SOURCE)
    (folder / "run.yaml").write_text("seq_len: 64\nlora: {rank: 8, targets: [wq]}\npack: false\n")
    rows = json.loads((folder / "rows.json").read_text())
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (folder / "chats.json").write_text(json.dumps([{"messages": messages}] * 3))
    write_folder(folder / "step-3", contents(checkpoint(), ADAPTER))
    home = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(home)


def sentencepiece() -> bytes:
    """A model of the bytes."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=6)
    return proto.SerializeToString()


# What reads each file; the folder stays sound but for that one.


def deepspeed(path: Path) -> None:
    config = deepspeed_json.load(path, [])
    problems = deepspeed_json.check(config, str(path), 2)
    if problems:
        raise UserError(problems)
    deepspeed_json.resolve(config, data_parallel=2, total_steps=10, width=64, fp16_supported=True)


def model(path: Path) -> None:
    source = open_model(str(path if path.suffix == ".gguf" else path.parent))
    for name in sorted(source.reader.names())[:3]:
        source.reader.read(name)


def adapter(path: Path) -> None:
    check_adapter(path.parent, CONFIG)


def rows(path: Path) -> None:
    tokenizer = byte_tokenizer(path.parent / "bytes")
    prepare([path], load_template("chatml", tokenizer), tokenizer, Reading(64))


def tokenizer(path: Path) -> None:
    loaded = load_tokenizer(path.parent / "tokenizer.json" if "config" in path.name else path)
    loaded.decode(loaded.encode("he said: <s> \U0001f600"))
    template = load_template(None, loaded)
    template.prompt([{"role": "user", "content": "hello"}], loaded)


def template(path: Path) -> None:
    tokenizer = byte_tokenizer(path.parent / "bytes")
    chat = load_template(str(path), tokenizer)
    chat.render(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer
    )


def hostfile(path: Path) -> None:
    for host in read_hostfile(path):
        assert HOST_NAME.fullmatch(host.name.rpartition("@")[2]) and host.slots > 0


def yaml(path: Path) -> None:
    parse(TrainOptions, ["--deepspeed", "x", "--config", str(path)], "train.py", "")


def saved(path: Path) -> None:
    read(next(p for p in path.parents if p.name == "step-3"), MOST)


def signed(path: Path) -> None:
    """The same with a manifest that agrees, as one would forge it."""
    folder = next(p for p in path.parents if p.name == "step-3")
    listed = folder / MANIFEST
    whole = listed.read_bytes()
    files = [p for p in folder.rglob("*") if p.is_file() and p != listed]
    names = {str(p.relative_to(folder)): written(p.read_bytes()) for p in files}
    listed.write_bytes(manifest(3, names))
    try:
        read(folder, MOST)
    finally:
        listed.write_bytes(whole)


READERS: dict[str, Callable[[Path], None]] = {
    "ds.json": deepspeed,
    "rows.json": rows,
    "rows.jsonl": rows,
    "chats.json": rows,
    "model/config.json": model,
    "model/model.safetensors": model,
    "meta/params.json": model,
    "meta/consolidated.00.pth": model,
    "model.gguf": model,
    "adapter/adapter_config.json": adapter,
    "adapter/adapter_model.safetensors": adapter,
    "model/tokenizer.json": tokenizer,
    "model/tokenizer_config.json": tokenizer,
    "model/generation_config.json": tokenizer,
    "tokenizer.gguf": tokenizer,
    "tokenizer.model": tokenizer,
    "chat.jinja": template,
    "run.yaml": yaml,
    "hosts": hostfile,
    "step-3/manifest.json": saved,
    "step-3/trainer.json": signed,
    "step-3/optimizer.safetensors": signed,
    "step-3/adapter/adapter_model.safetensors": signed,
}
IN_JSON = [name for name in READERS if name.endswith(".json")]


def outcome(reader: Callable[[Path], None], path: Path, spoilt: bytes) -> None:
    """Read `path` with `spoilt` in it; then put back what was there."""
    whole = path.read_bytes()
    path.write_bytes(spoilt)
    try:
        reader(path)
    except UserError as error:
        assert error.problems
        for line in error.problems:
            assert line and "\n" not in line and len(line) < 1000
    finally:
        path.write_bytes(whole)
    assert not os.path.exists("ran")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read(name: str, sound: Path) -> None:
    """Else nothing below would get far."""
    READERS[name](sound / name)


@pytest.mark.parametrize("name", READERS)
def test_bytes_changed(name: str, sound: Path) -> None:
    path = sound / name
    before = peak()

    @given(spoilt_bytes(path.read_bytes()))
    def spoil(content: bytes) -> None:
        outcome(READERS[name], path, content)

    spoil()
    assert peak() - before < MEMORY


@pytest.mark.parametrize("name", IN_JSON)
def test_values_exchanged(name: str, sound: Path) -> None:
    path = sound / name

    @given(spoilt_json(json.loads(path.read_text())))
    def spoil(content: bytes) -> None:
        outcome(READERS[name], path, content)

    spoil()


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_safetensors_headers_exchanged(name: str, sound: Path) -> None:
    """The header is JSON after its length; the tensors stay."""
    files = {"model": "model/model.safetensors", "adapter": "adapter/adapter_model.safetensors"}
    path = sound / files[name]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")

    @given(spoilt_json(json.loads(data[8 : 8 + length])))
    def spoil(header: bytes) -> None:
        content = len(header).to_bytes(8, "little") + header + data[8 + length :]
        outcome(READERS[files[name]], path, content)

    spoil()


def test_an_index_exchanged(sound: Path) -> None:
    """In place of the single file."""
    single, part = sound / "model/model.safetensors", sound / "model/part.safetensors"
    from safetensors import safe_open

    with safe_open(single, framework="pt") as handle:
        index = {"weight_map": {key: part.name for key in handle.keys()}, "metadata": {}}
    single.rename(part)
    path = sound / "model/model.safetensors.index.json"
    path.write_text(json.dumps(index))
    model(path)

    @given(spoilt_json(index))
    def spoil(content: bytes) -> None:
        outcome(model, path, content)

    try:
        spoil()
    finally:
        part.rename(single)
        path.unlink()


def test_a_pickle_s_payload_never_runs(sound: Path) -> None:
    """However it is spoilt: some changes leave it whole."""
    path = sound / "meta/consolidated.00.pth"
    whole = path.read_bytes()
    torch.save({"norm.weight": Payload()}, path)
    payload = path.read_bytes()
    path.write_bytes(whole)

    @given(st.one_of(st.just(payload), spoilt_bytes(payload)))
    def spoil(content: bytes) -> None:
        outcome(model, path, content)

    spoil()
