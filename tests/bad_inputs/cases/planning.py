"""What `plan` refuses, and what `train` refuses by its plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

from tests.bad_inputs.setting import Case, Setting
from tests.bad_inputs.spoiling import words


def gpu(name: str) -> Callable[[Setting], None]:
    return lambda setting: setting.options.update(gpu=name)


def without_deepspeed(*more: str, large: bool = False) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        del setting.options["deepspeed"]
        if large:
            setting.options |= {"model": "llama-3.1-405b", "gpu": "t4", "seq_len": "131072"}
        setting.more += more

    return spoil


def no_such_key(setting: Setting) -> None:
    setting.edit_json("ds.json", zero_optimisation={"stage": 1})


def bf16_on_a_t4(setting: Setting) -> None:
    setting.options.update(gpu="t4", seq_len="256")
    setting.edit_json("ds.json", bf16={"enabled": True}, zero_optimization={"stage": 1})


def fp8_on_an_a100(setting: Setting) -> None:
    setting.options.update(gpu="a100-80gb")
    setting.more += ["--base", "fp8"]


def too_large_for_the_machine(setting: Setting) -> None:
    setting.options |= {"model": "random:llama-7b", "tokenizer": "model"}
    setting.patches.append(
        mock.patch("llama.train.start.fits.free_bytes", lambda device: 16 * 2**30)
    )


Refused = partial(Case, command="plan")
CASES = [
    Refused("no such GPU", gpu("a100"), ("found 'a100'; did you mean a100-",)),
    Refused("no such network", words("--network", "wifi"), ("found 'wifi'",)),
    Refused("a JSON and `--suggest`", words("--suggest"), ("--suggest writes one",)),
    Refused(
        "a shared base and `--suggest`",
        without_deepspeed("--suggest", "--shard_base"),
        ("--shard_base: --suggest chooses it",),
    ),
    Refused(
        "shared tokens and `--suggest`",
        without_deepspeed("--suggest", "--gpus", "2", "--sequence_parallel", "2"),
        ("--sequence_parallel: --suggest looks among ways without it",),
    ),
    Refused(
        "a degree that does not divide a node",
        words("--gpus", "8", "--tensor_parallel", "3"),
        ("3 does not divide the 8 GPUs of a node",),
    ),
    Refused(
        "degrees that do not divide a node",
        words("--gpus", "8", "--tensor_parallel", "2", "--sequence_parallel", "3"),
        ("2 x 3 (--tensor_parallel x this) does not divide the 8 GPUs of a node",),
    ),
    Refused("no GPUs", words("--gpus", "0"), ("--gpus: expected at least 1",)),
    Refused(
        "rows and data",
        words("--rows", "5", "--data", "rows.json"),
        ("--rows: --data says it",),
    ),
    Refused("an unknown key", no_such_key, ("zero_optimisation",)),
    Refused("bf16 on a GPU without it", bf16_on_a_t4, ("bf16 is not supported",)),
    Refused(
        "`--base fp8` on a GPU without it",
        fp8_on_an_a100,
        ("--gpu a100-80gb has no such products: it is of compute capability 8.0",),
    ),
    Refused(
        "data without a tokenizer",
        lambda s: s.options.update(model="llama-7b", data="rows.json"),
        ("comes without a tokenizer",),
    ),
    Refused(
        "nothing that fits",
        without_deepspeed("--suggest", large=True),
        ("no way to train llama-3.1-405b",),
    ),
    Case(
        "`train`: a run that memory cannot hold",
        too_large_for_the_machine,
        ("this run needs 25.1 GiB on each rank (its weights alone)",),
    ),
]
