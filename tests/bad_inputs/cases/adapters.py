"""Adapters, given to generate and evaluate."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llama.tokenizer.identity import tokenizer_hash
from llama.tokenizer.load import load_tokenizer
from llama.weights.open_model import open_model
from tests.bad_inputs.setting import Case, Setting
from tests.support.origin import ORIGIN, about

WEIGHTS, CONFIG = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"
LAYER = "base_model.model.model.layers.0.self_attn"
A, B = f"{LAYER}.q_proj.lora_A.weight", f"{LAYER}.q_proj.lora_B.weight"


def fields(**changes: Any) -> Callable[[Setting], None]:
    return lambda setting: setting.edit_json(CONFIG, **changes)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        state = load_file(setting.path(WEIGHTS))
        change(state)
        save_file(state, setting.path(WEIGHTS))

    return spoil


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Setting], None]:
    """The header of the weights, written anew over the same bytes."""

    def spoil(setting: Setting) -> None:
        data = setting.path(WEIGHTS).read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        document = json.loads(data[8 : 8 + length])
        change(document)
        text = json.dumps(document).encode()
        setting.path(WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def overlapping(document: dict[str, Any]) -> None:
    """A moved on to the second value of B."""
    start = document[B]["data_offsets"][0] + 4
    document[A]["data_offsets"] = [start, start + 4 * 4 * 64]


def oversized(setting: Setting) -> None:
    data = setting.path(WEIGHTS).read_bytes()
    setting.path(WEIGHTS).write_bytes(struct.pack("<Q", 1 << 40) + data[8:])


def short(setting: Setting) -> None:
    os.truncate(setting.path(WEIGHTS), setting.path(WEIGHTS).stat().st_size - 16)


def fifo(name: str) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        setting.path(name).unlink()
        os.mkfifo(setting.path(name))

    return spoil


def half_of_b(state: dict[str, torch.Tensor]) -> None:
    """What one of two tensor-parallel ranks holds: A whole, half of B's rows."""
    for name, tensor in state.items():
        if "lora_B" in name:
            state[name] = tensor.chunk(2)[0].clone()


def wider_base(state: dict[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        if "lora_A" in name:
            state[name] = torch.zeros(tensor.shape[0], 128)


def deeper_base(state: dict[str, torch.Tensor]) -> None:
    for name in list(state):
        state[name.replace("layers.0", "layers.7")] = state[name].clone()


def not_finite(state: dict[str, torch.Tensor]) -> None:
    state[A][0, 0] = float("nan")


def generate(name: str, spoil: Callable[[Setting], object], *says: str) -> Case:
    return Case(name, spoil, says, "generate")


def described(change: Callable[[dict[str, Any]], object] = lambda _: None) -> Callable[..., None]:
    """The adapter as a run writes it: with what says what it is, changed by `change`."""

    def spoil(setting: Setting) -> None:
        folder = setting.path("adapter")
        model = open_model(str(setting.path("model")))
        document: dict[str, Any] = {
            "base": {"name": "model", "path": "model", "hub": None},
            "tokenizer": {"sha256": tokenizer_hash(load_tokenizer(setting.path("model")))},
        }
        document["base"]["sampled_sha256"] = model.reader.sampled_hash()
        change(document)
        for name, content in replace(about(8), origin=replace(ORIGIN, **document)).files().items():
            (folder / name).write_bytes(content)

    return spoil


def moved_base(setting: Setting) -> None:
    described(lambda d: d["base"].update(name="base", path="base"))(setting)
    del setting.options["model"]


def run_without(setting: Setting) -> None:
    setting.options["adapter"] = "finished"


def run_of_all_weights(setting: Setting) -> None:
    setting.path("finished/model").mkdir()
    setting.options["adapter"] = "finished"


def nameless(setting: Setting) -> None:
    del setting.options["model"]
    setting.edit_json(CONFIG, base_model_name_or_path=None)


def unknown_base(setting: Setting) -> None:
    del setting.options["model"]


def no_template(setting: Setting) -> None:
    described()(setting)
    setting.path("adapter/chat_template.jinja").unlink()


def no_hash(setting: Setting) -> None:
    described()(setting)
    setting.edit_json("adapter/training.json", base__sampled_sha256=...)


def begin(**options: str) -> Callable[[Setting], object]:
    return lambda setting: setting.options.update({"init_adapter": "adapter"} | options)


def begin_changed(setting: Setting) -> None:
    setting.options["init_adapter"] = "adapter"
    setting.edit_json(CONFIG, alpha_pattern={"layers.1.self_attn.q_proj": 16})


def begin_elsewhere(setting: Setting) -> None:
    described(lambda d: d["base"].update(name="base", sampled_sha256="0" * 64))(setting)
    setting.options["init_adapter"] = "adapter"


def train(name: str, spoil: Callable[[Setting], object], *says: str) -> Case:
    return Case(name, spoil, says)


CASES = [
    generate(
        "another base than its own",
        described(lambda d: d["base"].update(name="base", sampled_sha256="0" * 64)),
        "was trained on base, and model is another model",
    ),
    generate(
        "another tokenizer than its own",
        described(lambda d: d["tokenizer"].update(sha256="1" * 64)),
        "was trained with another tokenizer than this one",
    ),
    generate("a base that is gone", moved_base, "its base is base: it is not to be found here"),
    generate("no base, of its own or given", nameless, "does not say what its base is"),
    generate("a base that is nothing here", unknown_base, "its base is m: it is not to be"),
    generate("no template beside it", no_template, "chat_template.jinja: does not exist"),
    generate("a run that has no adapter", run_without, "has written no adapter yet"),
    generate("a run of all weights", run_of_all_weights, "give --model finished/model"),
    generate("no hash of its base", no_hash, "base.sampled_sha256: expected a text"),
    generate(
        "`--force` without an adapter",
        lambda s: [s.options.pop("adapter"), s.options.update(force="true")],
        "--force: has no effect without --adapter",
    ),
    train("to begin with: not there", begin(init_adapter="adaptor"), "did you mean adapter?"),
    train(
        "to begin with: another rank", begin(**{"lora.rank": "8"}), "8 is given, and --init_adapter"
    ),
    train(
        "to begin with: and from the base's own weights",
        begin(**{"lora.start": "pissa"}),
        "--lora.start: --init_adapter adapter says it",
    ),
    train("to begin with: of layers that differ", begin_changed, "its layers differ in rank"),
    train("to begin with: of another base", begin_elsewhere, "was trained on base, and model is"),
    train(
        "to begin with: and all weights train",
        begin(method="full"),
        "--init_adapter: has no effect with --method full",
    ),
    generate(
        "a folder that is not there",
        lambda setting: setting.options.update(adapter="adaptor"),
        "did you mean adapter?",
    ),
    generate(
        "a folder with no adapter",
        lambda setting: setting.options.update(adapter="model"),
        "is not a PEFT folder",
    ),
    generate("no weights", lambda s: s.path(WEIGHTS).unlink(), "does not exist"),
    generate("a FIFO for the weights", fifo(WEIGHTS), "is not a regular file"),
    generate("a FIFO for the settings", fifo(CONFIG), "is not a regular file"),
    generate("settings that are no JSON", lambda s: s.path(CONFIG).write_text("{"), "not JSON"),
    generate("a header of a terabyte", oversized, "not a whole safetensors file"),
    generate("tensors that overlap", header(overlapping), "not a whole safetensors file"),
    generate("16 bytes missing", short, "not a whole safetensors file"),
    generate("A without B", tensors(lambda t: t.pop(B)), f"one factor without the other: {A}"),
    generate("one tensor-parallel shard", tensors(half_of_b), "one tensor-parallel shard"),
    generate("another base, wider", tensors(wider_base), *["made for another base"] * 4),
    generate("another base, deeper", tensors(deeper_base), *["made for another base"] * 4),
    generate("another rank in the settings", fields(r=8), "r is 8"),
    generate("rank 0", fields(r=0), "r must be a positive integer; found 0"),
    generate("alpha as text", fields(lora_alpha="32"), "lora_alpha must be a positive number"),
    generate(
        "alpha `NaN`", fields(lora_alpha=float("nan")), "lora_alpha must be a positive number"
    ),
    generate("an unknown target", fields(target_modules=["q_proj", "qkv"]), "'qkv'"),
    generate(
        "targets with no tensors",
        fields(target_modules=["q_proj", "o_proj"]),
        *["missing tensor"] * 4,
    ),
    generate("another kind of adapter", fields(peft_type="IA3"), "expected LORA, found 'IA3'"),
    generate(
        "DoRA without its lengths",
        fields(use_dora=True),
        *[f"missing tensor {LAYER}.q_proj.lora_magnitude_vector", *["lora_magnitude_vector"] * 3],
    ),
    generate(
        "another rank for some layers",
        fields(rank_pattern={"q_proj": 2}),
        *["rank_pattern: says 2 for"] * 2,
    ),
    generate("NaN", tensors(not_finite), "is not finite"),
    generate(
        "a tensor that is no factor", tensors(lambda t: t.update(x=t[A].clone())), "x is not a LoRA"
    ),
]
