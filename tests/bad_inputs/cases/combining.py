"""What `combine` refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.bad_inputs.setting import Case, Setting, write_adapter


def given(*adapters: str, **options: str) -> Callable[[Setting], None]:
    """These adapters, and more options; `wide` is one of twice the rank."""

    def spoil(setting: Setting) -> None:
        write_adapter(setting.path("wide"), rank=8)
        setting.more += adapters
        setting.options.update(options)

    return spoil


def dora(setting: Setting) -> None:
    from safetensors.torch import load_file, save_file

    given("adapter", "wide")(setting)
    file = setting.path("adapter/adapter_model.safetensors")
    tensors = load_file(file)
    lengths = {
        name.replace("lora_B.weight", "lora_magnitude_vector"): tensor[:, 0].clone()
        for name, tensor in tensors.items()
        if "lora_B" in name
    }
    save_file(tensors | lengths, file)
    setting.edit_json("adapter/adapter_config.json", use_dora=True)


NOTES = ("holds no training.json",) * 2
"""What is said of either adapter before it is found that they do not go together."""
Refused = partial(Case, command="combine")
CASES = [
    Refused("one adapter", given("adapter"), ("expected two or more adapters, found 1",)),
    Refused("one that is not there", given("adapter:0.5", "adaptor:0.5"), ("mean adapter?",)),
    Refused("one that is none", given("adapter", "model"), ("model is not a PEFT folder",)),
    Refused("a weight of nothing", given("adapter:0", "adapter"), ("that is not 0, found 0",)),
    Refused("a weight of a million", given("adapter:1000000", "wide"), ("found 1e+06",)),
    Refused("a way that is none", given("adapter", "wide", how="ties"), ("--how: expected",)),
    Refused(
        "two ranks added",
        given("adapter", "wide", how="linear"),
        (*NOTES, "--how linear: expected adapters of one rank, found 4, 8: take cat"),
    ),
    Refused("DoRA", dora, (*NOTES, "is of the kind dora, which is no sum of factors")),
    Refused(
        "a folder that is there",
        given("adapter", "wide", output_dir="model"),
        ("--output_dir: model is there already",),
    ),
]
