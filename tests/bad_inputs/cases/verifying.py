"""What `verify` refuses; it reads the same JSON and the same launcher's words as `train`."""

from __future__ import annotations

from functools import partial

from tests.bad_inputs.cases.environment import cuda, variables
from tests.bad_inputs.setting import Case, Setting
from tests.bad_inputs.spoiling import words


def no_such_key(setting: Setting) -> None:
    setting.edit_json("ds.json", zero_optimisation={"stage": 1})


Refused = partial(Case, command="verify")
CASES = [
    Refused("no layers", words("--layers", "0"), ("--layers: ",)),
    Refused("rows too short", words("--seq_len", "4"), ("--seq_len: ",)),
    Refused(
        "a degree that one rank cannot have", words("--tensor_parallel", "2"), ("groups of 2",)
    ),
    Refused(
        "tokens shared over ranks that there are not",
        words("--sequence_parallel", "2"),
        ("--sequence_parallel: 1 process",),
    ),
    Refused("a rank above the width", words("--lora.rank", "65"), ("above the model's width 64",)),
    Refused(
        "adapters' settings where there are none",
        words("--method", "full", "--lora.targets", "wq"),
        ("--lora.targets: has no effect with --method full",),
    ),
    Refused("no such model", lambda s: s.options.update(model="absent"), ("absent",)),
    Refused("an unknown key", no_such_key, ("zero_optimisation",)),
    Refused("WORLD_SIZE `two`", variables(WORLD_SIZE="two"), ("WORLD_SIZE: expected",)),
    Refused("more ranks than devices", cuda(2, 4, "0,1", "2"), ("sees 2 CUDA devices",)),
]
