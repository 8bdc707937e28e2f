"""The DeepSpeed JSON."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.bad_inputs.setting import Case, Setting, launched


def text(content: str | bytes) -> Callable[[Setting], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda setting: setting.path("ds.json").write_bytes(data) and None


def keys(**changes: Any) -> Callable[[Setting], None]:
    return lambda setting: setting.edit_json("ds.json", **changes)


def absent(setting: Setting) -> None:
    setting.options["deepspeed"] = "ds.jsn"


def folder(setting: Setting) -> None:
    setting.options["deepspeed"] = "model"


def fifo(setting: Setting) -> None:
    setting.path("ds.json").unlink()
    os.mkfifo(setting.path("ds.json"))


def on_two_ranks(batch: int) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        setting.edit_json("ds.json", train_batch_size=batch)
        setting.environment |= launched(0, 2)

    return spoil


HALF: dict[str, Any] = {"fp16__enabled": True, "zero_optimization__stage": 1}
MICRO, STEPS = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
WHOLE = "train_batch_size"

CASES = [
    Case("an unknown key", keys(gradient_clip=1.0), ("did you mean gradient_clipping?",)),
    Case(
        "an unknown key inside a section",
        keys(optimizer__params__learning_rate=1e-3),
        ("optimizer.params.learning_rate: unknown key",),
    ),
    Case(
        "a key twice",
        text('{"gradient_clipping": 1.0, "gradient_clipping": 0.5}'),
        ("gradient_clipping: given twice",),
    ),
    Case("a trailing comma", text('{"fp16": {"enabled": true,}}'), ("trailing comma",)),
    Case("a comment", text('{\n  // half\n  "fp16": {}\n}'), ("line 2, column 3: JSON has no",)),
    Case("an empty file", text(""), ("ds.json: is empty",)),
    Case("a list", text("[1, 2]"), ("expected a JSON object, found [1, 2]",)),
    Case("half a file", text('{"fp16": {"enab'), ("line 1, column 11",)),
    Case("nested 100,000 deep", text('{"fp16":' + "[" * 100_000), ("nested too deeply",)),
    Case("not UTF-8", text(b'{"fp16": "\xff"}'), ("line 1: not UTF-8",)),
    Case("two megabytes", text(" " * (2 << 20)), ("not a settings file",)),
    Case("a file that is not there", absent, ("did you mean ds.json?",)),
    Case("a folder", folder, ("is a folder; a file is expected",)),
    Case("a FIFO", fifo, ("is not a regular file",)),
    Case("`NaN`", text('{"gradient_clipping": NaN}'), ("NaN is not JSON",)),
    Case("`1e999`", text('{"gradient_clipping": 1e999}'), ("1e999 is too large a number",)),
    Case(
        "micro-batch 1.5",
        keys(**{MICRO: 1.5}),
        ('expected an integer of at least 1, or "auto", found 1.5',),
    ),
    Case('micro-batch `"2"`', keys(**{MICRO: "2"}), ('found "2"',)),
    Case("micro-batch 0", keys(**{MICRO: 0}), ('at least 1, or "auto", found 0',)),
    Case("accumulation -1", keys(**{STEPS: -1}), ('at least 1, or "auto", found -1',)),
    Case("no batch size", keys(**{MICRO: ...}), (f"{MICRO}: missing",)),
    Case(
        "batch sizes that disagree",
        keys(**{WHOLE: 6, MICRO: 2, STEPS: 2}),
        (f"{WHOLE}: 6 is not",),
    ),
    Case(
        "a batch that two ranks cannot share",
        on_two_ranks(3),
        (f"{WHOLE}: 3 is not",),
    ),
    Case("fp16 and bf16", keys(**HALF, bf16__enabled=True), ("a run has one precision",)),
    Case("fp16 with ZeRO 0", keys(fp16__enabled=True), ("zero_optimization.stage: 0 with fp16",)),
    Case(
        "ZeRO 4", keys(zero_optimization__stage=4), ('an integer from 0 to 3, or "auto", found 4',)
    ),
    Case("clipping at -1", keys(gradient_clipping=-1), ("gradient_clipping: expected",)),
    Case('clipping at `"x"`', keys(gradient_clipping="x"), ('found "x"',)),
    Case("no clipping written", keys(gradient_clipping=...), ("gradient_clipping: missing",)),
    Case("a negative learning rate", keys(optimizer__params__lr=-1e-4), ("found -0.0001",)),
    Case("a learning rate of 0", keys(optimizer__params__lr=0), ("above 0",)),
    Case("an unknown optimizer", keys(optimizer__type="Lion"), ("one of AdamW, Adam",)),
    Case(
        "an unknown schedule",
        keys(scheduler={"type": "Cosine", "params": {}}),
        ("scheduler.type: expected one of WarmupLR",),
    ),
    Case(
        "a schedule without its length",
        keys(scheduler={"type": "WarmupLR", "params": {}}),
        ("scheduler.params.warmup_num_steps: missing",),
    ),
    Case(
        "loss-scale power 200",
        keys(**HALF, fp16__initial_scale_power=200),
        ("fp16.initial_scale_power: expected an integer from 0 to 32, found 200",),
    ),
    Case(
        "`sequence_parallel_size`",
        keys(sequence_parallel_size=2),
        ("sequence_parallel_size: use the option --sequence_parallel",),
    ),
    Case("`autotp_size`", keys(autotp_size=2), ("autotp_size: would replace",)),
    Case(
        "`activation_checkpointing`",
        keys(activation_checkpointing={"partition_activations": True}),
        ("use the option --checkpointing",),
    ),
    Case(
        "offload of what is not partitioned",
        keys(zero_optimization__offload_param={"device": "cpu"}),
        ("needs zero_optimization.stage 3",),
    ),
    Case(
        "an override of an unknown key",
        lambda setting: setting.more.extend(["--override", "optimizer.params.lrr=1"]),
        ("unknown key optimizer.params.lrr; did you mean optimizer.params.lr?",),
    ),
    Case(
        "a key overridden twice",
        lambda setting: setting.more.extend(
            ["--override", "gradient_clipping=1.0", "--override", "gradient_clipping=2.0"]
        ),
        ("--override gradient_clipping: given twice",),
    ),
    Case(
        "several mistakes",
        keys(**{MICRO: 0}, gradient_clipping=-1, zero=1),
        (MICRO, "gradient_clipping", "zero: unknown key"),
    ),
]
