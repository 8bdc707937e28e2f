"""Every damaged or hostile file is refused from its header, by name, before weights load."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llama.weights.open_model import open_model
from tests.support.model_files import (
    ROOT,
    TINY,
    random_state,
    write_gguf,
    write_huggingface,
    write_meta,
)
from tests.unit.weights.refusing import only

SHARD = "consolidated.00.pth"
WQ = "layers.0.attention.wq.weight"


# --- truncated, empty, not regular ---------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.999])
def test_truncated_files_are_named(meta: Path, hf: Path, gguf_file: Path, kept: float) -> None:
    files = {meta / SHARD: meta, hf / "model.safetensors": hf, gguf_file: gguf_file}
    for file, model in files.items():
        os.truncate(file, int(file.stat().st_size * kept))
        assert only(model).startswith(f"{file}: ")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_fifos_are_not_opened(hf: Path, name: str) -> None:
    (hf / name).unlink()
    os.mkfifo(hf / name)
    assert only(hf) == f"{hf / name}: is not a regular file"


@pytest.mark.parametrize("name", ["params.json", "consolidated.01.pth"])
def test_fifos_are_not_opened_in_a_meta_folder(meta: Path, name: str) -> None:
    (meta / name).unlink()
    os.mkfifo(meta / name)
    assert only(meta) == f"{meta / name}: is not a regular file"


# --- hostile files -------------------------------------------------------------------------------


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["archive", "legacy", "plain"])
def test_a_pickle_s_payload_never_runs(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "meta"
    write_meta(folder, TINY, random_state(TINY))
    trap = {"norm.weight": Payload(tmp_path / "ran")}
    if form == "plain":
        (folder / SHARD).write_bytes(pickle.dumps(trap, protocol=2))
    else:
        torch.save(trap, folder / SHARD, _use_new_zipfile_serialization=form == "archive")
    assert only(folder).startswith(f"{folder / SHARD}: cannot be read")
    assert not (tmp_path / "ran").exists()
    if form == "plain":  # and it would have run
        pickle.loads((folder / SHARD).read_bytes())
    else:
        torch.load(folder / SHARD, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [[torch.zeros(1)], {}, {"a": 3}, {3: torch.zeros(1)}])
def test_a_pth_that_holds_no_named_tensors(tmp_path: Path, value: object) -> None:
    write_meta(tmp_path, TINY, random_state(TINY))
    torch.save(value, tmp_path / SHARD)
    assert only(tmp_path).startswith(f"{tmp_path / SHARD}: ")


def test_a_pth_whose_directory_is_said_to_lie_on_other_disks(tmp_path: Path) -> None:
    """By which `zipfile` is shaken before it has said whether the file is an archive."""
    write_meta(tmp_path, TINY, random_state(TINY))
    elsewhere = struct.pack("<4sIQI", b"PK\6\7", 0, 0, 5) + b"PK\5\6" + bytes(18)
    (tmp_path / SHARD).write_bytes(bytes(64) + elsewhere)
    assert only(tmp_path).startswith(f"{tmp_path / SHARD}: cannot be read")


def gguf_header(n_tensors: int, n_fields: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_fields) + rest + bytes(4096)


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


HUGE = 1 << 60
HOSTILE_GGUF = {
    "fields": gguf_header(0, HUGE, b""),
    "tensors": gguf_header(HUGE, 0, b""),
    "text": gguf_header(0, 1, struct.pack("<Q", HUGE)),
    "array": gguf_header(0, 1, gguf_text("a") + struct.pack("<IIQ", 9, 0, HUGE)),
    "texts": gguf_header(0, 1, gguf_text("a") + struct.pack("<IIQ", 9, 8, HUGE)),
    "nested": gguf_header(0, 1, gguf_text("a") + struct.pack("<IIQ", 9, 9, HUGE)),
    "tensor": gguf_header(1, 0, gguf_text("a") + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0)),
    "dimensions": gguf_header(1, 0, gguf_text("a") + struct.pack("<I", 1 << 31)),
    "offset": gguf_header(1, 0, gguf_text("a") + struct.pack("<IQIQ", 1, 32, 0, HUGE)),
    "type": gguf_header(1, 0, gguf_text("a") + struct.pack("<IQIQ", 1, 32, 250, 0)),
    "version": b"GGUF" + struct.pack("<I", 1 << 24) + bytes(64),
    "magic": b"FUGG" + bytes(64),
}


@pytest.mark.parametrize("case", HOSTILE_GGUF)
def test_hostile_gguf_headers(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HOSTILE_GGUF[case])
    assert only(path).startswith(f"{path}: cannot be read as GGUF: ")


def hostile_pth(path: Path, legacy: bool) -> None:
    """A file whose tensor claims a storage of a terabyte."""
    torch.save({WQ: torch.zeros(16)}, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    count = b"K\x10t"  # the number 16, last in the tuple that names the storage
    if legacy:
        count = b"K\x10N"
    assert data.count(count) >= 1
    long = b"\x8a\x06" + (1 << 38).to_bytes(6, "little") + count[-1:]
    if legacy:
        path.write_bytes(data.replace(count, long))
        return
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(count, long) if "data.pkl" in name else content)


WATCH = """
import sys
from llama.errors import UserError
from llama.weights.open_model import open_model
from tests.support.peak import peak
try:
    open_model(sys.argv[1])
except UserError:
    pass
before = peak()
for model in sys.argv[2:]:
    try:
        open_model(model)
    except UserError as error:
        print(error.problems[0])
    else:
        sys.exit(f"{model} was opened")
sys.exit(peak() > before + 100)
"""


def test_headers_that_declare_terabytes_cost_no_memory(tmp_path: Path) -> None:
    models = []
    for case, content in HOSTILE_GGUF.items():
        models.append(tmp_path / f"{case}.gguf")
        models[-1].write_bytes(content)
    for name, legacy in (("archive", False), ("legacy", True)):
        write_meta(tmp_path / name, TINY, random_state(TINY))
        hostile_pth(tmp_path / name / SHARD, legacy)
        models.append(tmp_path / name)
    for length in (1 << 40, 90 << 20):
        folder = tmp_path / f"safetensors_{length}"
        write_huggingface(folder, TINY)
        with (folder / "model.safetensors").open("r+b") as file:
            file.write(struct.pack("<Q", length))
        models.append(folder)
    command = [sys.executable, "-c", WATCH, str(tmp_path / "archive"), *map(str, models)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(models)


def test_a_compressed_archive_is_refused(meta: Path) -> None:
    import zipfile

    with zipfile.ZipFile(meta / SHARD) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(meta / SHARD, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "is compressed" in only(meta)


# --- GGUF metadata -------------------------------------------------------------------------------


def rewrite_gguf(path: Path, change: Callable[[Any], object], **tensors: np.ndarray) -> None:
    """TINY's file again, with more fields or tensors."""
    import gguf

    plain = gguf.GGUFWriter.write_header_to_file

    def changed(writer: Any) -> None:
        change(writer)
        for name, data in tensors.items():
            writer.add_tensor(name.replace("__", "."), data)
        plain(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", changed)
        write_gguf(path, TINY, random_state(TINY))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.add_expert_count(8), "llama.expert_count = 8 is not supported"),
        (lambda w: w.add_sliding_window(64), "llama.attention.sliding_window = 64"),
        (lambda w: w.add_logit_scale(0.5), "llama.logit_scale = 0.5"),
        (lambda w: w.add_value_length(16), "llama.attention.value_length must be the head"),
        (lambda w: w.add_uint32("split.count", 3), "one part of several"),
        (
            lambda w: w.add_string("llama.rope.scaling.type", "longrope"),
            "llama.rope.scaling: rope_type 'longrope' is not supported",
        ),
        (lambda w: w.add_rope_scaling_yarn_log_mul(0.1), "yarn_log_multiplier = 0.1"),
        (lambda w: w.add_rope_scaling_attn_factors(2.0), "rope.scaling.attn_factor = 2.0"),
        (lambda w: w.add_causal_attention(False), "attention.causal = false"),
    ],
)
def test_gguf_fields(tmp_path: Path, change: Callable[[Any], object], expected: str) -> None:
    rewrite_gguf(tmp_path / "model.gguf", change)
    assert expected in only(tmp_path / "model.gguf")


def test_gguf_of_another_architecture(gguf_file: Path) -> None:
    data = gguf_file.read_bytes()
    key = gguf_text("general.architecture") + struct.pack("<I", 8)
    gguf_file.write_bytes(data.replace(key + gguf_text("llama"), key + gguf_text("qwen2")))
    assert "expected general.architecture 'llama', found 'qwen2'" in only(gguf_file)


def test_gguf_fields_that_are_not_known_are_named(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "model.gguf"
    rewrite_gguf(path, lambda w: w.add_tensor_data_layout("Meta AI original pth"))
    open_model(str(path))
    assert capsys.readouterr().err == ""
    rewrite_gguf(path, lambda w: w.add_uint32("llama.pooling_type", 2))
    open_model(str(path))
    assert capsys.readouterr().err == f"{path}: 1 field not known here: llama.pooling_type = 2\n"


def test_a_gguf_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    rewrite_gguf(path, lambda w: w.add_type("adapter"))
    assert only(path) == f"{path}: expected general.type 'model', found 'adapter'"


def test_gguf_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    rewrite_gguf(path, lambda w: None, other=np.zeros(32, np.float32))
    assert only(path) == f"{path}: unexpected tensor other"


def test_gguf_rope_factors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    rewrite_gguf(path, lambda w: None, rope_freqs__weight=np.ones(4, np.float32))
    assert open_model(str(path)).config == TINY
    for factors in ([1, 2, 3, 8], [1, 1, 1], [1, 1, 1, float("nan")], [1, 1, 1, -8]):
        data = np.array(factors, dtype=np.float32)
        rewrite_gguf(path, lambda w: None, rope_freqs__weight=data)
        assert "another rotary scaling than Llama 3.1's" in only(path)


def test_meta_scaling_of_known_releases(tmp_path: Path) -> None:
    """Llama 3.2 stretches by 32 where 3.1 does by 8; only its sizes tell."""
    from llama.model.presets import PRESETS
    from llama.weights.meta_config import complete, read_params

    path = tmp_path / "params.json"
    params = {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
    params |= {"multiple_of": 256, "ffn_dim_multiplier": 1.5, "norm_eps": 1e-05}
    params |= {"rope_theta": 500000.0, "use_scaled_rope": True}
    path.write_text(json.dumps(params))
    fields, config = read_params(path)
    assert complete(fields, replace(config, tied_embedding=True)) == PRESETS["llama-3.2-1b"]
    params |= {"dim": 4096, "n_layers": 32, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}
    path.write_text(json.dumps(params))
    assert complete(*read_params(path)) == PRESETS["llama-3.1-8b"]
    params |= {"rope_scaling_factor": 16}
    path.write_text(json.dumps(params))
    scaling = complete(*read_params(path)).rope_scaling
    assert scaling is not None and scaling.factor == 16.0
