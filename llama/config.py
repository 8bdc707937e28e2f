"""The settings of each command, and every check of them that needs no model.

What DeepSpeed understands (precision, batch, optimizer, schedule, ZeRO) is not here: the DeepSpeed
JSON owns it (`llama/deepspeed_json`), so nothing is set in two places.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llama import deepspeed_json
from llama.errors import UserError, raise_if
from llama.inputs import file_problem, nearest, not_found
from llama.model.config import LINEARS

TEMPLATES = ("alpaca", "llama2", "llama3", "chatml")
"""Prompt templates known by name; anything else is the path of a Jinja file."""

SEED_LIMIT = 2**63


@dataclass(frozen=True)
class LoRAOptions:
    """The adapters: W becomes W + (alpha / rank) B A."""

    rank: int = 16
    """Rank of the adapters: A is rank x in, B is out x rank."""
    alpha: float = 32.0
    """An adapter's output is scaled by alpha / rank."""
    dropout: float = 0.05
    """Share of an adapter's inputs dropped in training, from 0 to below 1."""
    targets: tuple[str, ...] = ("wq", "wv")
    """Linear layers of each block that get an adapter: any of wq, wk, wv, wo, w1, w2, w3."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, for every command."""

    model: str = "smollm2-135m"
    """A folder or file (Meta, Hugging Face or GGUF), a hub name, the bundled smollm2-135m, or
    random:NAME, the shape of NAME (as llama-7b) with random weights."""
    tokenizer: Path | None = None
    """A tokenizer's file or folder; none means the one found beside the model."""
    template: str | None = None
    """How a prompt is laid out: alpaca, llama2, llama3, chatml, or a Jinja file; none means the
    model's own, else alpaca."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ModelOptions):
    """Settings of `train`."""

    deepspeed: Path
    """The DeepSpeed JSON, as ds_configs/lora.json: precision, batch, optimizer, schedule, ZeRO."""
    data: Path | None = None
    """Training rows, JSON, JSONL or Parquet: Alpaca, prompt/completion, messages or text; none
    means the 200 bundled examples."""
    eval_data: Path | None = None
    """Held-out rows, in any form --data takes; none means the bundled set where --data is also
    none, else no evaluation."""
    output_dir: Path | None = None
    """Folder the run writes; none means runs/<time>. What --resume does with one that holds a run
    already is said there."""
    epochs: int = 5
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; none means all the epochs."""
    seq_len: int = 1024
    """Tokens of one row of a batch; a longer example is cut."""
    pack: bool = True
    """Whether examples share a row, each seeing only itself."""
    tensor_parallel: int = 1
    """Ranks each layer is split over; it divides the number of processes."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    """The adapters."""
    checkpointing: Literal["none", "ffn", "block", "auto"] = "block"
    """What is recomputed in the backward pass to save memory: nothing, the feed-forward layers, or
    whole blocks; auto keeps as much as the device's free memory holds."""
    compile: bool = False
    """Whether norm, rotary turn and SwiGLU are fused by torch.compile; needs a C compiler."""
    seed: int = 0
    """Seed of the adapters, the order of rows and the dropout."""
    save_every: int | None = None
    """Optimizer steps between checkpoints; none means one at the end of each epoch. There is always
    one at the end of the run."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    resume: str = "auto"
    """auto goes on with the run in --output_dir from its newest checkpoint that is whole, or starts
    where there is no run; never refuses a folder that holds a run; a checkpoint's folder goes on
    from that one."""
    hang_timeout: float = 480.0
    """Seconds without a sign of life after which a rank in training ends the run, the stacks of its
    threads in hang-rank-N.txt; by default before NCCL would, which does not say where it stood."""
    override: list[str] = field(default_factory=list)
    """One key of the DeepSpeed JSON, as optimizer.params.lr=1e-4; may be repeated."""
    json: bool = False
    """Whether the last line of standard output is the run's summary as one JSON object."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(ModelOptions):
    """Settings of `generate`."""

    prompt: str
    """The text to answer; with --raw to continue, where '' starts from BOS alone."""
    adapter: Path | None = None
    """A PEFT folder; none means the model alone."""
    max_new_tokens: int = 256
    """Stop after this many tokens, if no end of text came before."""
    temperature: float = 0.0
    """Randomness of each choice: 0 always takes the likeliest token."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of the choices, where the temperature is above 0."""
    raw: bool = False
    """Continue the prompt as it stands, with no template."""
    precision: Literal["half", "float32"] = "half"
    """What the model computes in; half is the 16-bit type that suits the device."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """Settings of `evaluate`."""

    data: Path
    """Rows to evaluate on: JSON, JSONL or Parquet, in any form that train takes."""
    adapter: Path | None = None
    """A PEFT folder; none means the model alone."""
    seq_len: int = 1024
    """Tokens of one row of a batch; a longer example is cut."""
    pack: bool = True
    """Whether examples share a row, each seeing only itself."""
    micro_batch: int = 1
    """Rows computed at a time."""
    precision: Literal["half", "float32"] = "half"
    """What the model computes in; half is the 16-bit type that suits the device."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(ModelOptions):
    """Settings of `benchmark`."""

    data: Path | None = None
    """Rows to train on, in any form that train takes; none means random tokens, each row of the
    batch one document with every position supervised."""
    rows: int | None = None
    """Take this many rows from the start of --data; none means all."""
    batch: int | None = None
    """Rows of a micro-batch; none means what --deepspeed says, else 4, or 1 packed row with
    --data."""
    seq_len: int | None = None
    """Tokens of a row; none means 256, or 1024 with --data."""
    precision: Literal["bf16", "fp16", "float32"] | None = None
    """What the step computes in; none means what --deepspeed says, else bf16."""
    deepspeed: Path | None = None
    """A DeepSpeed JSON, as ds_configs/lora_bf16.json, which then says batch and precision; none
    means AdamW, clipping at 1.0, ZeRO-1 and no accumulation."""
    tensor_parallel: int = 1
    """Ranks each layer is split over; it divides the number of processes."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    """The adapters."""
    checkpointing: Literal["none", "ffn", "block", "auto"] = "block"
    """What is recomputed in the backward pass, as in train."""
    compile: bool = False
    """Whether norm, rotary turn and SwiGLU are fused by torch.compile, as in train."""
    steps: int = 10
    """Optimizer steps that are timed."""
    warmup: int = 3
    """Optimizer steps before them that are not."""
    memory_limit_gb: float | None = None
    """Cap on the memory that CUDA tensors may take, in GiB, as of a smaller card; none means no
    cap."""
    seed: int = 0
    """Seed of random tokens, the order of rows, the adapters and the dropout."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Settings of `verify`."""

    deepspeed: Path
    """The DeepSpeed JSON of the run to be proved."""
    model: str = "smollm2-135m"
    """The model whose widths are used, as train takes it; its weights are not read."""
    tensor_parallel: int = 1
    """Ranks each layer is split over; it divides the number of processes."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    """The adapters."""
    checkpointing: Literal["none", "ffn", "block", "auto"] = "block"
    """What is recomputed in the backward pass, as in train."""
    compile: bool = False
    """Whether norm, rotary turn and SwiGLU are fused by torch.compile, as in train."""
    layers: int = 2
    """Blocks of the model that is built, at most the model's own number."""
    steps: int = 5
    """Optimizer steps that are compared."""
    seq_len: int = 128
    """Tokens of a row, at most."""
    precision: Literal["half", "float32"] = "half"
    """half proves the run in float32 and then in the JSON's own precision; float32 only the
    former."""
    seed: int = 0
    """Seed of the weights, the rows, the adapters and the dropout."""
    override: list[str] = field(default_factory=list)
    """One key of the DeepSpeed JSON, as in train; may be repeated."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""


# Checks: each gives its problems, one line each, so that a command can raise all of them at once.


def check_train(options: TrainOptions, world_size: int) -> list[str]:
    """Every problem of `train`'s own settings on `world_size` ranks."""
    problems = [
        *_check_model(options),
        *_at_least(1, epochs=options.epochs, max_steps=options.max_steps),
        *_at_least(1, save_every=options.save_every, keep=options.keep),
        *_at_least(2, seq_len=options.seq_len),
        *check_lora(options.lora),
        *_check_degree(options.tensor_parallel, world_size),
        *_check_seed(options.seed),
        *_check_files(data=options.data, eval_data=options.eval_data),
    ]
    if not 0 < options.hang_timeout < math.inf:
        expected = "expected a finite number above 0"
        problems.append(f"--hang_timeout: {expected}, found {options.hang_timeout}")
    if options.output_dir is not None:
        problems += _check_output(options.output_dir, options.resume == "never")
    return problems


def checked_train(options: TrainOptions, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON of `train`, overrides applied, to be resolved; raises one `UserError` with
    every problem of the settings and of that file."""
    return _with_deepspeed(check_train(options, world_size), options, world_size)


def checked_verify(options: VerifyOptions, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON of `verify`, overrides applied; raises one `UserError` with every problem
    of the settings and of that file."""
    problems = [
        *([] if options.model else ["--model: expected a path or a name, found ''"]),
        *_at_least(1, layers=options.layers, steps=options.steps),
        *_at_least(8, seq_len=options.seq_len),
        *check_lora(options.lora),
        *_check_degree(options.tensor_parallel, world_size),
        *_check_seed(options.seed),
    ]
    return _with_deepspeed(problems, options, world_size)


def _with_deepspeed(
    problems: list[str], options: TrainOptions | VerifyOptions, world_size: int
) -> dict[str, Any]:
    groups, rest = divmod(world_size, max(1, options.tensor_parallel))
    config: dict[str, Any] = {}
    try:
        config = deepspeed_json.load(options.deepspeed, options.override)
        data_parallel = None if rest else groups
        problems = problems + deepspeed_json.check(config, str(options.deepspeed), data_parallel)
    except UserError as error:
        problems = problems + error.problems
    raise_if(problems)
    return config


def check_generate(options: GenerateOptions) -> list[str]:
    """Every problem of `generate`'s settings."""
    problems = [
        *_check_model(options),
        *_check_adapter(options.adapter),
        *_at_least(1, max_new_tokens=options.max_new_tokens),
        *_check_seed(options.seed),
    ]
    if not 0 <= options.temperature < math.inf:
        expected = "expected a finite number of at least 0"
        problems.append(f"--temperature: {expected}, found {options.temperature}")
    if not 0 < options.top_p <= 1:
        problems.append(f"--top_p: expected above 0 and at most 1, found {options.top_p}")
    if options.raw and options.template is not None:
        problems.append("--template: has no effect with --raw; give one of them")
    return problems


def check_evaluate(options: EvaluateOptions) -> list[str]:
    """Every problem of `evaluate`'s settings."""
    return [
        *_check_model(options),
        *_check_adapter(options.adapter),
        *_check_files(data=options.data),
        *_at_least(2, seq_len=options.seq_len),
        *_at_least(1, micro_batch=options.micro_batch),
    ]


def check_benchmark(options: BenchmarkOptions, world_size: int) -> list[str]:
    """Every problem of `benchmark`'s own settings on `world_size` ranks."""
    problems = [
        *_check_model(options),
        *_check_files(data=options.data),
        *_at_least(1, rows=options.rows, batch=options.batch, steps=options.steps),
        *_at_least(0, warmup=options.warmup),
        *_at_least(2, seq_len=options.seq_len),
        *check_lora(options.lora),
        *_check_degree(options.tensor_parallel, world_size),
        *_check_seed(options.seed),
    ]
    if options.rows is not None and options.data is None:
        problems.append("--rows: has no effect without --data")
    if options.deepspeed is not None:
        owned = {"batch": options.batch, "precision": options.precision}
        problems += [
            f"--{name}: {options.deepspeed} says it; give one of them"
            for name, value in owned.items()
            if value is not None
        ]
    limit = options.memory_limit_gb
    if limit is not None and not 0 < limit < math.inf:
        problems.append(f"--memory_limit_gb: expected a finite number above 0, found {limit}")
    return problems


def check_lora(lora: LoRAOptions) -> list[str]:
    """Every problem of the adapters' settings; the rank against the model's widths comes later."""
    problems = _at_least(1, **{"lora.rank": lora.rank})
    if not 0 < lora.alpha < math.inf:
        problems.append(f"--lora.alpha: expected a finite number above 0, found {lora.alpha}")
    if not 0 <= lora.dropout < 1:
        problems.append(f"--lora.dropout: expected from 0 to below 1, found {lora.dropout}")
    for index, name in enumerate(lora.targets):
        if name not in LINEARS:
            known = f"expected among {','.join(LINEARS)}, found {name!r}"
            problems.append(f"--lora.targets: {known}{nearest(name, LINEARS)}")
        elif name in lora.targets[:index]:
            problems.append(f"--lora.targets: {name} is given twice")
    if not lora.targets:
        problems.append(f"--lora.targets: expected one or more of {','.join(LINEARS)}")
    return problems


def _at_least(least: int, **values: int | None) -> list[str]:
    return [
        f"--{name}: expected at least {least}, found {value}"
        for name, value in values.items()
        if value is not None and not value >= least
    ]


def _check_seed(seed: int) -> list[str]:
    if 0 <= seed < SEED_LIMIT:
        return []
    return [f"--seed: expected from 0 to below 2**63, found {seed}"]


def _check_degree(tensor_parallel: int, world_size: int) -> list[str]:
    if tensor_parallel >= 1 and world_size % tensor_parallel:
        ranks = f"{world_size} process{'es' if world_size > 1 else ''}"
        return [
            f"--tensor_parallel: {ranks} cannot be divided into groups of {tensor_parallel}; "
            "start a multiple of it (deepspeed --num_gpus N)"
        ]
    return _at_least(1, tensor_parallel=tensor_parallel)


def _check_files(**paths: Path | None) -> list[str]:
    return [
        f"--{name}: {path} {problem}"
        for name, path in paths.items()
        if path is not None and (problem := file_problem(path))
    ]


def _check_model(options: ModelOptions) -> list[str]:
    problems = [] if options.model else ["--model: expected a path or a name, found ''"]
    if options.tokenizer is not None and not options.tokenizer.exists():
        problems.append(f"--tokenizer: {options.tokenizer} {not_found(options.tokenizer)}")
    template = options.template
    if template is not None and template not in TEMPLATES:
        if problem := file_problem(Path(template)):
            known = f"expected one of {', '.join(TEMPLATES)}, or a Jinja file"
            hint = nearest(template, TEMPLATES) or f", which {problem}"
            problems.append(f"--template: {known}, found {template!r}{hint}")
    return problems


def _check_adapter(adapter: Path | None) -> list[str]:
    if adapter is None or os.path.exists(adapter / "adapter_config.json"):
        return []
    if not os.path.exists(adapter):
        return [f"--adapter: {adapter} {not_found(adapter)}"]
    return [f"--adapter: {adapter} is not a PEFT folder: it holds no adapter_config.json"]


def _check_output(folder: Path, unused: bool) -> list[str]:
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
