"""Every check of the settings that needs no model: each gives its problems, one line each, so that
a command can raise all of them at once."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

from llama.errors import UserError, raise_if
from llama.files.inputs import file_problem, nearest, not_found
from llama.files.run_folder import adapter_folder, why_no_adapter
from llama.settings import deepspeed_json
from llama.settings.adapters import check_lora, check_rates
from llama.settings.base import check_base, check_base_zero, check_held
from llama.settings.commands import (
    AblateOptions,
    AnswerOptions,
    BenchmarkOptions,
    LoRAOptions,
    PlanOptions,
    TrainOptions,
    VerifyOptions,
)
from llama.settings.data_sets import check_plain, check_sets, check_split
from llama.settings.degrees import check_degrees, readers
from llama.settings.model import AdapterOptions, ModelOptions
from llama.settings.report_to import check_report_to
from llama.settings.shard_base import check_shard_base
from llama.settings.sharing import Ranks
from llama.settings.starts import UNIFORM
from llama.settings.suite import without_suite
from llama.tokenizer.built_in_templates import TEMPLATES

SEED_LIMIT = 2**63


def check_train(options: TrainOptions, world_size: int) -> list[str]:
    """Every problem of `train`'s own settings on `world_size` ranks."""
    problems = [
        *check_model(options),
        *at_least(1, epochs=options.epochs, max_steps=options.max_steps),
        *at_least(1, save_every=options.save_every, keep=options.keep),
        *_check_evaluations(options),
        *at_least(2, seq_len=options.seq_len),
        *_check_method(options),
        *_check_init_adapter(options),
        *check_degrees(options, world_size),
        *check_seed(options.seed),
        *check_sets(options.data),
        *check_plain("eval_data", options.eval_data),
        *check_split(options.eval_split, options.eval_data),
        *check_report_to(options.report_to),
    ]
    if not 0 < options.hang_timeout < math.inf:
        expected = "expected a finite number above 0"
        problems.append(f"--hang_timeout: {expected}, found {options.hang_timeout}")
    if options.output_dir is not None:
        problems += check_output(options.output_dir, options.resume == "never")
    return problems


def _check_evaluations(options: TrainOptions) -> list[str]:
    asked = {"eval_every": options.eval_every, "early_stop": options.early_stop}
    if options.data and not options.eval_data and options.eval_split is None:
        return [
            f"--{name}: has no effect without held-out rows; name them with --eval_data, or have "
            "--eval_split hold out some of --data"
            for name, value in asked.items()
            if value is not None
        ]
    return at_least(1, **asked)


def checked_train(options: TrainOptions, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON of `train`, overrides applied, to be resolved; raises one `UserError` with
    every problem of the settings and of that file."""
    problems = check_train(options, world_size)
    file = options.deepspeed or deepspeed_json.of_method(options.method)
    return _with_deepspeed(problems, options, file, Ranks.launched(world_size))


def checked_verify(options: VerifyOptions, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON of `verify`, overrides applied; raises one `UserError` with every problem
    of the settings and of that file."""
    problems = [
        *([] if options.model else ["--model: expected a path or a name, found ''"]),
        *at_least(1, layers=options.layers, steps=options.steps),
        *at_least(8, seq_len=options.seq_len),
        *_check_method(options),
        *check_degrees(options, world_size),
        *check_seed(options.seed),
    ]
    return _with_deepspeed(problems, options, options.deepspeed, Ranks.launched(world_size))


def _with_deepspeed(
    problems: list[str],
    options: TrainOptions | VerifyOptions | PlanOptions,
    file: Path,
    ranks: Ranks,
) -> dict[str, Any]:
    config: dict[str, Any] = {}
    try:
        file = deepspeed_json.located(file)
        config = deepspeed_json.load(file, options.override)
        problems = problems + deepspeed_json.check(config, str(file), readers(options, ranks.count))
        problems += check_rates(options.lora, config, file)
        problems += check_shard_base(options, config, file, ranks)
        problems += check_base_zero(options.base, config, file)
    except UserError as error:
        problems = problems + error.problems
    raise_if(problems)
    return config


def check_answering(options: AnswerOptions) -> list[str]:
    """Every problem of how a model is to answer."""
    problems = [
        *check_use(options),
        *check_held(options.base),
        *at_least(1, max_new_tokens=options.max_new_tokens),
        *check_seed(options.seed),
    ]
    if not 0 <= options.temperature < math.inf:
        expected = "expected a finite number of at least 0"
        problems.append(f"--temperature: {expected}, found {options.temperature}")
    if not 0 < options.top_p <= 1:
        problems.append(f"--top_p: expected above 0 and at most 1, found {options.top_p}")
    return problems


def check_benchmark(options: BenchmarkOptions, world_size: int) -> list[str]:
    """Every problem of `benchmark`'s own settings on `world_size` ranks."""
    problems = [
        *check_model(options),
        *check_sets(options.data),
        *at_least(1, rows=options.rows, batch=options.batch, steps=options.steps),
        *at_least(0, warmup=options.warmup),
        *at_least(2, seq_len=options.seq_len),
        *_check_method(options),
        *check_degrees(options, world_size),
        *check_seed(options.seed),
    ]
    if not options.data:
        problems += [
            f"--{name}: has no effect without --data"
            for name, given in {"rows": options.rows, "columns": options.columns}.items()
            if given
        ]
    if options.deepspeed is not None:
        owned = {"batch": options.batch, "precision": options.precision}
        problems += [
            f"--{name}: {options.deepspeed} says it; give one of them"
            for name, value in owned.items()
            if value is not None
        ]
    problems += without_suite(options)
    limit = options.memory_limit_gb
    if limit is not None and not 0 < limit < math.inf:
        problems.append(f"--memory_limit_gb: expected a finite number above 0, found {limit}")
    return problems


def check_ablate(options: AblateOptions) -> list[str]:
    """Every problem of `ablate`'s settings."""
    known = {"method": ("lora", "full"), "precision": ("float32", "bf16", "fp16")}
    problems = [
        *check_model(options),
        *at_least(1, steps=options.steps),
        *at_least(2, seq_len=options.seq_len, rows=options.rows),
        *check_lora(options.lora),
        *check_seed(options.seed),
        *check_plain("data", options.data),
        *check_plain("eval_data", options.eval_data),
        *check_output(options.output_dir, unused=False),
    ]
    for name, words in known.items():
        given = getattr(options, name)
        problems += [
            f"--{name}: expected among {','.join(words)}, found {word!r}{nearest(word, words)}"
            for word in given
            if word not in words
        ]
        if len(set(given)) < len(given) or not given:
            problems.append(f"--{name}: expected each of {','.join(words)} once at most")
    return problems


def check_plan(options: PlanOptions) -> list[str]:
    """Every problem of `plan`'s own settings; whether the GPU is known comes later."""
    problems = [
        *check_model(options),
        *at_least(1, gpus=options.gpus, nodes=options.nodes, batch=options.batch),
        *at_least(1, rows=options.rows, epochs=options.epochs, max_steps=options.max_steps),
        *at_least(2, seq_len=options.seq_len),
        *_check_method(options),
        *check_sets(options.data),
    ]
    if options.gpus >= 1 and options.nodes >= 1:
        problems += check_degrees(options, options.gpus, "GPUs of a node")
    problems += _idle_in_plan(options)
    if options.rows is not None and options.data:
        problems.append("--rows: --data says it; give one of them")
    if options.suggest and options.deepspeed is not None:
        problems.append("--deepspeed: --suggest writes one; give one of them")
    if options.suggest and options.sequence_parallel > 1:
        problems.append(
            "--sequence_parallel: --suggest looks among ways without it; plan it with --deepspeed"
        )
    if options.suggest and options.override:
        problems.append("--override: has no effect with --suggest; change the file that it writes")
    if options.output_dir is not None:
        problems += check_output(options.output_dir, unused=False)
    return problems


def _idle_in_plan(options: PlanOptions) -> list[str]:
    """What a plan was given and would not look at."""
    chosen = "--suggest chooses it; leave it out, or give --deepspeed"
    return [
        *_idle(options, not options.data, "has no effect without --data", "columns"),
        *_idle(options, not options.suggest, "has no effect without --suggest", "batch"),
        *_idle(options, options.suggest, chosen, "shard_base"),
    ]


def idle_notes(options: PlanOptions) -> list[str]:
    """The same of what a file of options that serves `train` too may hold: told, and no mistake."""
    has_length = bool(options.data) or options.rows is not None
    of_blocks = ("tensor_parallel", "checkpointing", "compile")
    return [
        *_idle(options, not options.data, "has no effect without --data", "pack", "overlong"),
        *_idle(options, not has_length, "has no effect without --data or --rows", "epochs"),
        *_idle(options, options.suggest, "has no effect: --suggest chooses it", *of_blocks),
    ]


def _idle(options: PlanOptions, is_idle: bool, why: str, *names: str) -> list[str]:
    usual = {field.name: field.default for field in dataclasses.fields(options)}
    given = [name for name in names if is_idle and getattr(options, name) != usual[name]]
    return [f"--{name}: {why}" for name in given]


def checked_plan(options: PlanOptions) -> dict[str, Any]:
    """The DeepSpeed JSON of `plan`, overrides applied; empty with --suggest. Raises one `UserError`
    with every problem of the settings and of that file."""
    problems = check_plan(options)
    if options.suggest:
        raise_if(problems)
        return {}
    of_host = max(1, options.gpus)
    ranks = Ranks(of_host * max(1, options.nodes), of_host)
    file = options.deepspeed or deepspeed_json.of_method(options.method)
    return _with_deepspeed(problems, options, file, ranks)


def _check_method(
    options: TrainOptions | BenchmarkOptions | VerifyOptions | PlanOptions,
) -> list[str]:
    """Problems of what trains; without adapters none of their settings may be asked for."""
    problems = check_base(options.base, options.method)
    if options.method == "lora":
        return problems + check_lora(options.lora)
    plain = LoRAOptions()
    return problems + [
        f"--lora.{field.name}: has no effect with --method {options.method}; leave it out"
        for field in dataclasses.fields(plain)
        if getattr(options.lora, field.name) != getattr(plain, field.name)
    ]


def at_least(least: int, **values: int | None) -> list[str]:
    """A problem for each option, by name, whose value is below `least`."""
    return [
        f"--{name}: expected at least {least}, found {value}"
        for name, value in values.items()
        if value is not None and not value >= least
    ]


def check_seed(seed: int) -> list[str]:
    """The problem of a seed that is none to PyTorch."""
    if 0 <= seed < SEED_LIMIT:
        return []
    return [f"--seed: expected from 0 to below 2**63, found {seed}"]


def check_model(options: ModelOptions | AdapterOptions) -> list[str]:
    """Every problem of the options that name the model, its tokenizer and its template."""
    problems = ["--model: expected a path or a name, found ''"] if options.model == "" else []
    if options.tokenizer is not None and not options.tokenizer.exists():
        problems.append(f"--tokenizer: {options.tokenizer} {not_found(options.tokenizer)}")
    template = options.template
    # A word may be a name of the model's own templates: that is judged with the tokenizer.
    if template is not None and not re.fullmatch(r"[\w.-]+", template):
        if problem := file_problem(Path(template)):
            known = f"expected one of {', '.join(TEMPLATES)}, or a Jinja file"
            problems.append(f"--template: {known}, found {template!r}, which {problem}")
    return problems


def check_use(options: AdapterOptions) -> list[str]:
    """Every problem of the adapter that a command is to use."""
    if options.adapter is None:
        return ["--force: has no effect without --adapter"] if options.force else []
    return check_adapter_folder("adapter", options.adapter)


def _check_init_adapter(options: TrainOptions) -> list[str]:
    if options.init_adapter is None:
        return []
    if options.method != "lora":
        return [f"--init_adapter: has no effect with --method {options.method}; leave it out"]
    if options.lora.start != UNIFORM:
        return [f"--lora.start: --init_adapter {options.init_adapter} says it; give one of them"]
    return check_adapter_folder("init_adapter", options.init_adapter)


def check_adapter_folder(option: str, path: Path) -> list[str]:
    """Whether `path`, given to `option`, is an adapter or holds one."""
    if adapter_folder(path) is not None:
        return []
    why = why_no_adapter(path) if os.path.exists(path) else not_found(path)
    return [f"--{option}: {path} {why}"]


def check_output(folder: Path, unused: bool) -> list[str]:
    """Nothing is created here: a refused run leaves no trace."""
    if unused and any(os.path.exists(folder / name) for name in ("run.json", "checkpoints")):
        return [
            f"--output_dir: {folder} already holds a run; give another folder, or --resume auto to "
            "go on with it"
        ]
    nearest_existing = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    if not nearest_existing.is_dir():
        return [f"--output_dir: {nearest_existing} is a file; a folder is expected"]
    if not os.access(nearest_existing, os.W_OK | os.X_OK):
        return [f"--output_dir: {nearest_existing} cannot be written to"]
    return []
