"""The model: its sizes, its weights, and what a file of it may not do."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs.setting import Case, Setting

WEIGHTS, INDEX = "model/model.safetensors", "model/model.safetensors.index.json"
CONFIG, PARAMS, SHARD = "model/config.json", "meta/params.json", "meta/consolidated.00.pth"
HF_WQ, WQ = "model.layers.0.self_attn.q_proj.weight", "layers.0.attention.wq.weight"
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
HUGE = 1 << 60


def named(model: str) -> Callable[[Setting], None]:
    return lambda setting: setting.options.update(model=model)


def meta(spoil: Callable[[Setting], object]) -> Callable[[Setting], None]:
    def both(setting: Setting) -> None:
        setting.options |= {"model": "meta", "tokenizer": "model/tokenizer.json"}
        spoil(setting)

    return both


def gguf(spoil: Callable[[Setting], object]) -> Callable[[Setting], None]:
    def both(setting: Setting) -> None:
        setting.options |= {"model": "model.gguf", "tokenizer": "model/tokenizer.json"}
        spoil(setting)

    return both


def fields(name: str, **changes: Any) -> Callable[[Setting], None]:
    return lambda setting: setting.edit_json(name, **changes)


def cut(name: str, share: float) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        path = setting.path(name)
        os.truncate(path, int(path.stat().st_size * share))

    return spoil


def fifo(name: str) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        setting.path(name).unlink()
        os.mkfifo(setting.path(name))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        path = setting.path(WEIGHTS)
        state = load_file(path)
        change(state)
        save_file(state, path)

    return spoil


def shard(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        state = torch.load(setting.path(SHARD))
        change(state)
        torch.save(state, setting.path(SHARD))

    return meta(spoil)


def header(length: int, text: bytes = b"") -> Callable[[Setting], object]:
    """A safetensors file that declares a header of `length` bytes."""
    data = struct.pack("<Q", length) + text
    return lambda setting: setting.path(WEIGHTS).write_bytes(data)


def gguf_bytes(n_tensors: int, n_fields: int, rest: bytes = b"") -> Callable[[Setting], None]:
    data = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_fields) + rest + bytes(4096)
    return gguf(lambda setting: setting.path("model.gguf").write_bytes(data))


class Payload:
    """Unpickling this makes a folder in the folder of the case."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def payload(setting: Setting) -> None:
    torch.save({"norm.weight": Payload()}, setting.path(SHARD))


def bare_payload(setting: Setting) -> None:
    setting.path(SHARD).write_bytes(pickle.dumps({"norm.weight": Payload()}, protocol=2))


def pickled_only(setting: Setting) -> None:
    setting.path(WEIGHTS).rename(setting.path("model/pytorch_model.bin"))


def shard_missing(setting: Setting) -> None:
    setting.path("meta/consolidated.00.pth").unlink()


def shard_extra(setting: Setting) -> None:
    data = setting.path(SHARD).read_bytes()
    setting.path("meta/consolidated.02.pth").write_bytes(data)


def index(**places: str) -> Callable[[Setting], None]:
    """An index in place of the single file, which it names but for `places`."""

    def spoil(setting: Setting) -> None:
        setting.path(WEIGHTS).rename(setting.path("model/part.safetensors"))
        names = load_file(setting.path("model/part.safetensors"))
        named = {name: "part.safetensors" for name in names} | {HF_WQ: places["wq"]}
        setting.path(INDEX).write_text("{}")
        setting.edit_json(INDEX, weight_map=named)

    return spoil


def not_finite(state: dict[str, torch.Tensor]) -> None:
    state[HF_WQ][3, 5] = float("nan")


def two_ggufs(setting: Setting) -> None:
    setting.path("two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        setting.path(f"two/{name}").write_bytes(b"")
    setting.options["model"] = "two"


CASES = [
    Case("a folder that is not there", named("modell"), ("did you mean model?",)),
    Case("a shape without weights", named("llama-7b"), ("random:llama-7b for random ones",)),
    Case("an unknown random shape", named("random:llama-8b"), ("no such shape; the nearest is",)),
    Case(
        "a folder with no model",
        named("adapter"),
        ("adapter/config.json: does", "adapter: neither"),
    ),
    Case("one file of a folder", named(WEIGHTS), ("give the folder of the model",)),
    Case("a folder of two GGUF files", two_ggufs, ("several GGUF files",)),
    Case("half of the weights", cut(WEIGHTS, 0.5), ("not a whole safetensors file",)),
    Case("no weights in the file", cut(WEIGHTS, 0), ("the file is empty",)),
    Case("a FIFO for the weights", fifo(WEIGHTS), ("is not a regular file",)),
    Case("a FIFO for the sizes", fifo(CONFIG), ("is not a regular file",)),
    Case("a header of a terabyte", header(1 << 40), ("not a whole safetensors file",)),
    Case("a header that is no JSON", header(8, b"        "), ("not a whole safetensors file",)),
    Case(
        "weights as pickle alone",
        pickled_only,
        ("pickled weights are not read: convert them",),
    ),
    Case("sizes that are no JSON", lambda s: s.path(CONFIG).write_text("{"), ("not JSON",)),
    Case("another architecture", fields(CONFIG, model_type="qwen2"), ("model_type 'qwen2'",)),
    Case(
        "a window of attention",
        fields(CONFIG, **MISTRAL, sliding_window=4096),
        ("sliding_window = 4096 is not supported: where",),
    ),
    Case(
        "a window of attention that is left out",
        fields(CONFIG, **MISTRAL),
        ("sliding_window is missing, which in this model_type means 4096",),
    ),
    Case("a size missing", fields(CONFIG, hidden_size=...), ("hidden_size must be",)),
    Case("a size as text", fields(CONFIG, num_hidden_layers="2"), ("found '2'",)),
    Case("a billion layers", fields(CONFIG, num_hidden_layers=10**9), ("the weights hold 2",)),
    Case("a quantised model", fields(CONFIG, quantization_config={"bits": 4}), ("quantization",)),
    Case("a tensor missing", tensors(lambda t: t.pop(HF_WQ)), (f"missing tensor {HF_WQ}",)),
    Case(
        "a tensor too many",
        tensors(lambda t: t.update(x=t[HF_WQ].clone())),
        ("unexpected tensor x",),
    ),
    Case(
        "a tensor of another shape",
        tensors(lambda t: t.update({HF_WQ: t[HF_WQ][:8].clone()})),
        ("has shape [8, 64], expected [64, 64]",),
    ),
    Case(
        "a tensor of integers",
        tensors(lambda t: t.update({HF_WQ: t[HF_WQ].to(torch.int8)})),
        ("is I8, expected floating point",),
    ),
    Case("an index that leaves its folder", index(wq="../x.safetensors"), ("'../x.safetensors'",)),
    Case("an index of an absolute path", index(wq="/x.safetensors"), ("'/x.safetensors'",)),
    Case("an index of a file not there", index(wq="b.safetensors"), ("model/b.safetensors",)),
    Case(
        "NaN among the weights",
        lambda setting: [tensors(not_finite)(setting), setting.options.pop("adapter")],
        ("model/model.safetensors: layers.0.attention.wq.weight: the weights hold NaN",),
        "generate",
        True,
    ),
    Case("Meta: a size missing", meta(fields(PARAMS, dim=...)), ("dim must be",)),
    Case("Meta: wrong sizes", meta(fields(PARAMS, multiple_of=128)), ("width 256, but w1",)),
    Case(
        "Meta: heads that do not share",
        meta(fields(PARAMS, n_kv_heads=3)),
        ("8 heads cannot share 3",),
    ),
    Case("Meta: the first shard missing", meta(shard_missing), ("a shard is missing",)),
    Case("Meta: a shard too many", meta(shard_extra), ("was cut into 2 shards, found 3",)),
    Case("Meta: half a shard", meta(cut(SHARD, 0.5)), ("consolidated.00.pth: cannot be read",)),
    Case("Meta: a tensor missing from one shard", shard(lambda t: t.pop(WQ)), (WQ,)),
    Case("Meta: a pickle that runs code", meta(payload), ("nothing of it is run",)),
    Case("Meta: a bare pickle that runs code", meta(bare_payload), ("nothing of it is run",)),
    Case("GGUF: half a file", gguf(cut("model.gguf", 0.5)), ("it is truncated",)),
    Case("GGUF: cut within the header", gguf(cut("model.gguf", 0.001)), ("past the end",)),
    Case("GGUF: 2^60 fields", gguf_bytes(0, HUGE), ("cannot be read as GGUF",)),
    Case("GGUF: 2^60 tensors", gguf_bytes(HUGE, 0), ("cannot be read as GGUF",)),
    Case("GGUF: a text of 2^60 bytes", gguf_bytes(0, 1, struct.pack("<Q", HUGE)), ("past",)),
    Case("GGUF: not GGUF", gguf(lambda s: s.path("model.gguf").write_bytes(b"x" * 99)), ("begin",)),
]
