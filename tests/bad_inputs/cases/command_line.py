"""The command line, and what it asks of the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from llama.parallel.mesh import SINGLE, Mesh
from tests.bad_inputs.setting import Case, Setting, launched


def option(name: str, value: str | None) -> Callable[[Setting], None]:
    """Another value of an option; None leaves it out."""

    def spoil(setting: Setting) -> None:
        setting.options[name] = value or ""
        if value is None:
            del setting.options[name]

    return spoil


def words(*more: str) -> Callable[[Setting], None]:
    return lambda setting: setting.more.extend(more)


def yaml(content: str) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        setting.path("run.yaml").write_text(content)
        setting.more += ["--config", "run.yaml"]

    return spoil


def ranks(count: int, *more: str) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        setting.more += more
        setting.environment |= launched(0, count)
        alone = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]
        setting.patches += [  # no others come
            mock.patch("llama.train.loop.start_processes"),
            mock.patch("llama.train.loop.create_mesh", lambda _: alone),
        ]

    return spoil


def resume_from_nothing(setting: Setting) -> None:
    setting.more += ["--resume", "absent"]
    alone = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]
    setting.patches.append(mock.patch("llama.train.loop.create_mesh", lambda _: alone))


def output_without_room(setting: Setting) -> None:
    """It is judged where the checkpoints' sizes are known, by the main rank."""
    usage = SimpleNamespace(total=1 << 40, used=0, free=1000)
    setting.patches.append(mock.patch("shutil.disk_usage", lambda _: usage))
    alone = Mesh(0, 1, SINGLE, 0, 1, None)  # type: ignore[arg-type]
    setting.patches.append(mock.patch("llama.train.loop.create_mesh", lambda _: alone))


def output_in_use(setting: Setting) -> None:
    setting.path("out").mkdir()
    setting.path("out/run.json").write_text("{}")
    setting.more += ["--resume", "never"]


def output_in_a_file(setting: Setting) -> None:
    setting.path("file").write_text("")
    setting.options["output_dir"] = "file/out"


def output_read_only(setting: Setting) -> None:
    """Root may write anywhere, so the system's answer is changed."""
    setting.path("shut").mkdir()
    setting.options["output_dir"] = "shut/out"
    access = os.access

    def answer(path: Any, mode: int) -> bool:
        return not (str(path).endswith("shut") and mode & os.W_OK) and access(path, mode)

    setting.patches.append(mock.patch("os.access", answer))


CASES = [
    Case("an unknown option", words("--seqlen", "64"), ("did you mean --seq_len?",)),
    Case("a word that is no option", words("fast"), ("unexpected argument 'fast'",)),
    Case("an option without its value", words("--epochs"), ("--epochs: its value is missing",)),
    Case("`--deepspeed` left out", option("deepspeed", None), ("--deepspeed: required",)),
    Case("`--epochs two`", option("epochs", "two"), ("expected an integer, found 'two'",)),
    Case("`--epochs 0`", option("epochs", "0"), ("--epochs: expected at least 1",)),
    Case("`--max_steps 0`", option("max_steps", "0"), ("--max_steps: expected at least 1",)),
    Case(
        "`--eval_every 0` and `--early_stop 0`",
        words("--eval_split", "0.2", "--eval_every", "0", "--early_stop", "0"),
        ("--eval_every: expected at least 1", "--early_stop: expected at least 1"),
    ),
    Case(
        "evaluations where no rows are held out",
        words("--eval_every", "10", "--early_stop", "2"),
        ("--eval_every: has no effect without held-out rows", "--early_stop: has no effect"),
    ),
    Case("`--seq_len 1`", option("seq_len", "1"), ("--seq_len: expected at least 2",)),
    Case("`--seed -1`", option("seed", "-1"), ("--seed: expected from 0",)),
    Case("`--pack maybe`", words("--pack=maybe"), ("expected true or false",)),
    Case("`--checkpointing blocks`", words("--checkpointing", "blocks"), ("did you mean block?",)),
    Case("`--template chatlm`", option("template", "chatlm"), ("did you mean chatml?",)),
    Case("`--lora.rank 0`", words("--lora.rank", "0"), ("--lora.rank: expected at least 1",)),
    Case("a rank above the width", words("--lora.rank", "65"), ("above the model's width 64",)),
    Case("`--method half`", words("--method", "half"), ("expected one of lora, full",)),
    Case(
        "adapters' settings where there are none",
        words("--method", "full", "--lora.rank", "8", "--lora.dropout", "0"),
        ("--lora.rank: has no effect with --method full", "--lora.dropout: has no effect"),
    ),
    Case("`--lora.alpha nan`", words("--lora.alpha", "nan"), ("expected a finite number",)),
    Case("`--lora.dropout 1`", words("--lora.dropout", "1"), ("from 0 to below 1, found 1.0",)),
    Case("a target that matches no layer", words("--lora.targets", "wq,wx"), ("found 'wx'",)),
    Case("a target twice", words("--lora.targets", "wq,wq"), ("wq is given twice",)),
    Case("no target", words("--lora.targets", ""), ("expected names joined by commas",)),
    Case("`--override lr`", words("--override", "lr"), ("expected KEY=VALUE",)),
    Case("a resume from nothing", resume_from_nothing, ("--resume: absent does not",)),
    Case("an output folder in use, with no resume", output_in_use, ("already holds a run",)),
    Case("an output folder below a file", output_in_a_file, ("is a file; a folder is expected",)),
    Case("an output folder that cannot be written", output_read_only, ("cannot be written to",)),
    Case("a disk without room", output_without_room, ("has room for 1,000 bytes, and the run is",)),
    Case("more ranks a model than ranks", words("--tensor_parallel", "2"), ("1 process cannot",)),
    Case("ranks no multiple of the degree", ranks(3, "--tensor_parallel", "2"), ("3 processes",)),
    Case("`--tensor_parallel 0`", words("--tensor_parallel", "0"), ("expected at least 1",)),
    Case(
        "a degree that does not divide the heads",
        ranks(8, "--tensor_parallel", "8"),
        ("does not divide the model's kv heads 4",),
    ),
    Case(
        "a degree that divides nothing",
        ranks(5, "--tensor_parallel", "5"),
        ("query heads 8, kv heads 4, feed-forward width 192:",),
    ),
    Case("a YAML file that is not there", words("--config", "run.yml"), ("run.yml: ",)),
    Case("a YAML file with an unknown option", yaml("seqlen: 64\n"), ("did you mean seq_len?",)),
    Case(
        "an option twice",
        words("--seed", "1", "--seed=2", "--model", "model"),
        ("--seed: given twice; keep one", "--model: given twice; keep one"),
    ),
    Case("a YAML file with an option twice", yaml("seed: 1\nseed: 2\n"), ("given twice",)),
    Case("a YAML list", yaml("- seed\n"), ("expected a mapping",)),
    Case("a YAML file with an alias", yaml("data: &a x\nmodel: *a\n"), ("aliases are not",)),
    Case("half a YAML file", yaml("lora: {rank: 8\n"), ("run.yaml: line 2: not YAML",)),
    Case(
        "a YAML tag that asks for code",
        yaml("seed: !!python/object/apply:os.system [touch ran]\n"),
        ("run.yaml: line 1: seed: expected an integer, found 'touch ran'",),
    ),
    Case("`--temperature -1`", words("--temperature", "-1"), ("--temperature",), "generate"),
    Case("`--top_p 0`", words("--top_p", "0"), ("--top_p: expected above 0",), "generate"),
    Case("`--raw` with a template", words("--raw", "--template", "chatml"), ("--raw",), "generate"),
    Case("`--rows` without data", words("--rows", "4"), ("no effect without",), "benchmark"),
    Case("`--batch` said twice", words("--batch", "4"), ("ds.json says it",), "benchmark"),
    Case(
        "a prompt that is not UTF-8",
        lambda s: s.options.update(prompt="caf\udce9"),
        ("--prompt: not UTF-8 at byte 3",),
        "generate",
    ),
    Case(
        "a folder whose name is not UTF-8",
        lambda s: s.options.update(output_dir="caf\udce9"),
        ("--output_dir: not UTF-8 at byte 3",),
    ),
    Case(
        "four mistakes at once",
        words("--lora.rank", "0", "--epochs", "0", "--override", "zero.stage=1", "--data", "row"),
        ("--epochs", "--lora.rank", "--data", "zero.stage"),
    ),
]
