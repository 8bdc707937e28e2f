"""The command line, and what it asks of the model."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.bad_inputs.setting import Case, Setting
from tests.bad_inputs.spoiling import alone, ranks, words


def option(name: str, value: str | None) -> Callable[[Setting], None]:
    """Another value of an option; None leaves it out."""

    def spoil(setting: Setting) -> None:
        setting.options[name] = value or ""
        if value is None:
            del setting.options[name]

    return spoil


def yaml(content: str) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        setting.path("run.yaml").write_text(content)
        setting.more += ["--config", "run.yaml"]

    return spoil


def without_package(name: str, *more: str) -> Callable[[Setting], None]:
    """Ask for what needs it, where nothing of that name is installed."""
    find_spec = importlib.util.find_spec

    def spoil(setting: Setting) -> None:
        setting.more += more

        def found(package: str, *more: Any) -> Any:
            return None if package == name else find_spec(package, *more)

        setting.patches.append(mock.patch("importlib.util.find_spec", found))

    return spoil


nf4_under_zero3 = words("--base", "nf4", "--override", "zero_optimization.stage=3")


def prompts(content: bytes) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        setting.path("prompts").write_bytes(content)
        setting.more += ["--prompt_file", "prompts"]

    return spoil


def wandb_without_account(setting: Setting) -> None:
    """A stand-in for the package, so that no key of this machine's user is found; the real one is
    asked in tests/integration/test_report_to.py."""
    setting.more += ["--report_to", "wandb"]
    asked = SimpleNamespace(authenticate_session=lambda **_: None)
    settings = SimpleNamespace(
        _offline=False, _noop=False, base_url="", update_from_env_vars=lambda _: None
    )
    modules = {
        "wandb": SimpleNamespace(Settings=lambda: settings),
        "wandb.sdk.lib": SimpleNamespace(wbauth=asked),
    }
    setting.patches += [
        mock.patch.dict("sys.modules", modules),
        mock.patch("importlib.util.find_spec"),
    ]


def adapter_of_no_run(setting: Setting) -> None:
    setting.path("run/adapter").mkdir(parents=True)
    setting.path("run/adapter/adapter_config.json").write_text("{}")
    setting.options["output_dir"] = "run"


def prompts_too_long(setting: Setting) -> None:
    del setting.options["adapter"]
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    setting.edit_json("model/config.json", rope_parameters=rope)
    prompts(b"short\n" + b"long " * 100)(setting)


def system_left_out(setting: Setting) -> None:
    del setting.options["adapter"]
    setting.path("plain.jinja").write_text("{{ messages[-1]['content'] }}")
    setting.more += ["--template", "plain.jinja", "--system", "Be brief."]


def resume_from_nothing(setting: Setting) -> None:
    setting.more += ["--resume", "absent"]
    setting.patches.append(alone())


def output_without_room(setting: Setting) -> None:
    """It is judged where the checkpoints' sizes are known, by the main rank."""
    usage = SimpleNamespace(total=1 << 40, used=0, free=1000)
    setting.patches.append(mock.patch("shutil.disk_usage", lambda _: usage))
    setting.patches.append(alone())


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
    Case("`--gpu` left out", option("gpu", None), ("--gpu: required",), command="plan"),
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
    Case("`--lora.start pisa`", words("--lora.start", "pisa"), ("did you mean pissa?",)),
    Case("`--lora.b_lr_ratio 0`", words("--lora.b_lr_ratio", "0"), ("finite number above 0",)),
    Case(
        "two rates under a schedule of one",
        words(
            *("--lora.b_lr_ratio", "4", "--override", "scheduler.type=OneCycle"),
            *("--override", "scheduler.params={}"),
        ),
        ("cycle_min_lr: missing", "cycle_first_step_size: missing", "has the schedule OneCycle"),
    ),
    Case(
        "two ways to adapt that do not go together",
        words("--lora.kind", "dora", "--lora.start", "pissa"),
        ("--lora.start: pissa is for --lora.kind lora, found dora",),
    ),
    Case(
        "more singular values than the layer has",
        words("--lora.start", "pissa", "--lora.rank", "64", "--lora.targets", "wq,wv"),
        ("--lora.rank: 64 is more than the 32 singular values of wv",),
    ),
    Case("`--lora.alpha nan`", words("--lora.alpha", "nan"), ("expected a finite number",)),
    Case("`--lora.dropout 1`", words("--lora.dropout", "1"), ("from 0 to below 1, found 1.0",)),
    Case("a target that matches no layer", words("--lora.targets", "wq,wx"), ("found 'wx'",)),
    Case("a target twice", words("--lora.targets", "wq,wq"), ("wq is given twice",)),
    Case("no target", words("--lora.targets", ""), ("expected names joined by commas",)),
    Case("`--override lr`", words("--override", "lr"), ("expected KEY=VALUE",)),
    Case("`--report_to wandv`", words("--report_to", "wandv"), ("did you mean wandb?",)),
    Case("a place beside `none`", words("--report_to", "none,tensorboard"), ("stands alone",)),
    Case("a place twice", words("--report_to", "tensorboard,tensorboard"), ("once at most",)),
    Case(
        "a place whose package is not installed",
        without_package("mlflow", "--report_to", "tensorboard,mlflow"),
        ("--report_to mlflow: the package mlflow is not installed: pip install",),
    ),
    Case(
        "`--report_to wandb` without an account",
        wandb_without_account,
        ("--report_to wandb: no account is known here",),
    ),
    Case("a resume from nothing", resume_from_nothing, ("--resume: absent does not",)),
    Case(
        "`--base nf4` without what holds it",
        without_package("bitsandbytes", "--base", "nf4"),
        ("--base nf4: the package bitsandbytes is not installed: pip install 'llama-lora[nf4]'",),
    ),
    Case("`--base nf4` for all", words("--base", "nf4", "--method", "full"), ("trains every",)),
    Case("`--base nf4` under ZeRO-3", nf4_under_zero3, ("--base nf4: ds.json has ZeRO-3",)),
    Case("an output folder in use, with no resume", output_in_use, ("already holds a run",)),
    Case("an output folder with an adapter of no run", adapter_of_no_run, ("is of no run",)),
    Case("an output folder below a file", output_in_a_file, ("is a file; a folder is expected",)),
    Case("an output folder that cannot be written", output_read_only, ("cannot be written to",)),
    Case("a disk without room", output_without_room, ("has room for 1,000 bytes, and the run is",)),
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
    Case("`chat --compare` alone", words("--compare"), ("--compare: lays",), "chat"),
    Case(
        "a chat of no sense", words("--top_p", "2", "--seed", "-1"), ("--seed", "--top_p"), "chat"
    ),
    Case("`--raw` with a template", words("--raw", "--template", "chatml"), ("--raw",), "generate"),
    Case("`--system` with `--raw`", words("--raw", "--system", "a"), ("--system",), "generate"),
    Case("`--batch 0`", words("--batch", "0"), ("--batch: expected at least 1",), "generate"),
    Case("`--stream` with `--json`", words("--stream", "--json"), ("with --json",), "generate"),
    Case("no prompt", option("prompt", None), ("--prompt: required",), "generate"),
    Case(
        "standard input read twice",
        words("--prompt_file", "-", "-"),
        ("-: standard input can be read once only",),
        "generate",
    ),
    Case(
        "standard input under a launcher",
        ranks(2, "--tensor_parallel", "2", "-"),
        ("hands no standard input on to its ranks",),
        "generate",
    ),
    Case(
        "more processes than generate shares a model between",
        ranks(2),
        ("--tensor_parallel: 2 processes were started",),
        "generate",
    ),
    Case(
        "a system turn that the template leaves out",
        system_left_out,
        ("--system: the template leaves it out",),
        "generate",
    ),
    Case("prompts: an empty file", prompts(b""), ("prompts: is empty",), "generate"),
    Case("prompts: blank lines alone", prompts(b"\n \n"), ("holds no prompts",), "generate"),
    Case(
        "prompts: not UTF-8",
        prompts(b"a\nb\xff\n"),
        ("prompts: line 2: not UTF-8",),
        "generate",
    ),
    Case("prompts: a NUL", prompts(b"a\nb\n\0"), ("line 3: holds a NUL",), "generate"),
    Case(
        "prompts: objects without one",
        prompts(b'{"prompt": "a"}\n{"text": "b"}\n{"prompt": 3}\nword\n'),
        ("line 2: expected a text", "line 3: expected a text", "line 4: expected a JSON object"),
        "generate",
    ),
    Case("prompts: a list cut short", prompts(b'[\n {"prompt": "a"},\n'), ("none (",), "generate"),
    Case(
        "prompts: a first line that only looks like an object",
        prompts(b'{"prompt": "a",}\n{"prompt": "b"}\n'),
        ("prompts: line 1: looks like JSON and is none (",),
        "generate",
    ),
    Case(
        "prompts: half a surrogate pair",
        prompts(b'{"prompt": "a\\ud83d b"}\n'),
        ("prompts: line 1: `prompt` holds half of a surrogate",),
        "generate",
    ),
    Case("prompts: a short option", words("-n", "5"), ("-n: ",), "generate"),
    Case("prompts: a file not there", words("--prompt_file", "promts"), ("promts",), "generate"),
    Case(
        "prompts: a folder",
        words("--prompt_file", "model"),
        ("model: is a folder",),
        "generate",
    ),
    Case(
        "prompts: longer than the positions of a model that ends there",
        prompts_too_long,
        ("prompts: line 2: the prompt's",),
        "generate",
    ),
    Case(
        "answers into a file that holds something",
        words("--output", "rows.json"),
        ("--output: rows.json holds something already",),
        "generate",
    ),
    Case(
        "answers into a folder",
        words("--output", "model"),
        ("--output: model is a folder",),
        "generate",
    ),
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
