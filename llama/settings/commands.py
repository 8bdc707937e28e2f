"""The settings of each command; the docstring under a field is its `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llama.model.kept import Checkpointing
from llama.settings.base import Base
from llama.settings.model import AdapterOptions, RowOptions
from llama.settings.options.marks import BARE, BY_CONTENT, BY_KEY, BY_VALUE
from llama.settings.sharing import WHOLE
from llama.settings.starts import UNIFORM
from llama.settings.suite_options import SuiteOptions
from llama.settings.targets import in_our_names

Compile = Literal["auto", "true", "false"]
"""See `TrainOptions.compile`; what it comes to on a device: `llama.kernels.compiled.is_wanted`."""


@dataclass(frozen=True)
class LoRAOptions:
    """The adapters: W becomes W + scale B A, or what --lora.kind says."""

    rank: int = field(default=16, metadata=BY_VALUE)
    """Rank of the adapters: A is rank x in, B is out x rank."""
    alpha: float = field(default=32.0, metadata=BY_VALUE)
    """An adapter's output is scaled by it; see --lora.scale."""
    dropout: float = field(default=0.05, metadata=BY_VALUE)
    """Share of an adapter's inputs dropped in training, from 0 to below 1."""
    targets: tuple[str, ...] = field(default=("wq", "wv"), metadata=BY_VALUE)
    """Linear layers of each block that get an adapter: any of wq, wk, wv, wo, w1, w2, w3, by these
    names or Hugging Face's (q_proj); all-linear, attention and feed_forward mean several."""
    kind: Literal["lora", "dora"] = field(default="lora", metadata=BY_VALUE)
    """How an adapter is computed: lora, W + scale B A; dora, the same with the length of each row
    trained apart."""
    scale: Literal["alpha/r", "alpha/sqrt(r)"] = field(default="alpha/r", metadata=BY_VALUE)
    """What an adapter's output is scaled by: alpha over the rank, or over its square root (rsLoRA),
    under which large ranks learn as fast as small ones."""
    start: str = field(default=UNIFORM, metadata=BY_VALUE)
    """How an adapter begins: uniform, A by chance and B zero; pissa, as the strongest part of the
    layer's own weight, by its singular values; pissa_niter_N, nearly that in much less time, by N
    rounds of a search (16 is many)."""
    b_lr_ratio: float = field(default=1.0, metadata=BY_VALUE)
    """By how much B learns faster than A (LoRA+): its rate, and dora's lengths', is the DeepSpeed
    JSON's times this."""

    @property
    def title(self) -> str:
        """What papers call such adapters."""
        return "PiSSA" if self.start != UNIFORM else {"lora": "LoRA", "dora": "DoRA"}[self.kind]

    def __post_init__(self) -> None:
        """So that nothing behind the options meets a layer by two names."""
        object.__setattr__(self, "targets", in_our_names(self.targets))


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RowOptions):
    """Settings of `train`."""

    deepspeed: Path | None = None
    """The DeepSpeed JSON, as ds_configs/lora.json: precision, batch, optimizer, schedule, ZeRO.
    None means the one named after --method that comes with the program: lora.json, full.json."""
    data: list[Path] = field(default_factory=list, metadata=BY_CONTENT)
    """Training rows: a file (JSON, JSONL, CSV, Parquet or Arrow) or a folder of shards; may be
    repeated. Alpaca, Dolly, prompt/completion, messages, ShareGPT or text; none means the 200
    bundled examples. FILE:2 takes the examples of FILE twice in every epoch, FILE:0.5 half of them
    in each; a file of such a name goes before that."""
    eval_data: list[Path] = field(default_factory=list, metadata=BY_CONTENT)
    """Held-out rows, as --data takes them; none means the bundled set where --data is also none,
    else no evaluation."""
    eval_split: float | None = field(default=None, metadata=BY_VALUE)
    """Hold out examples of --data in place of --eval_data: a share of them, as 0.1, or so many, as
    200. Which ones follows from what they say and from --seed; equal ones stay together."""
    output_dir: Path | None = None
    """Folder the run writes; none means runs/<time>. What --resume does with one that holds a run
    already is said there."""
    epochs: int = 5
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; none means all the epochs."""
    seq_len: int = field(default=1024, metadata=BY_VALUE)
    """Tokens of one row of a batch; see --overlong."""
    pack: bool = field(default=True, metadata=BY_VALUE)
    """Whether examples share a row, each seeing only itself."""
    tensor_parallel: int = 1
    """Ranks each layer is split over; it divides the number of processes."""
    sequence_parallel: int = 1
    """Ranks the tokens of each row are split over, for long rows; times --tensor_parallel it
    divides the number of processes."""
    method: Literal["lora", "full"] = field(default="lora", metadata=BY_VALUE)
    """What trains: lora, adapters beside the frozen model; full, every parameter of the model."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    """The adapters, with --method lora."""
    base: Base = field(default="half", metadata=BY_VALUE)
    """How the frozen weights of the blocks are held: half, in the JSON's own precision; fp8 or
    int8, in eight bits and multiplied so, in half the memory; nf4, in four bits with double
    quantisation (QLoRA), made dense for each product: slower, in a third of the memory. Of GPUs
    those from Ada and Hopper on have fp8; nf4 needs the package bitsandbytes; not with ZeRO-3. See
    docs/quantised.md and docs/nf4.md."""
    init_adapter: Path | None = field(default=None, metadata=BY_CONTENT)
    """Begin a new run from the values of this adapter, a folder as generate's --adapter takes. Its
    rank, alpha, targets and scale are taken; one that is given and differs is refused. None means
    first values from --seed."""
    checkpointing: Checkpointing = "block"
    """What is recomputed in the backward pass to save memory: nothing, the feed-forward layers, or
    whole blocks; host too, with the blocks' inputs in host memory, for long rows on a GPU; auto
    keeps as much as the device's free memory holds, and less from a step on that needs more."""
    shard_base: str = field(default=WHOLE, metadata=BARE)
    """Whether a data-parallel rank keeps a share of the frozen base in place of all of it, and
    gathers one block ahead of the one it computes: memory for traffic, to the last digit the same
    results. true, or nothing more: with the other ranks of its host, so that only adapters cross
    between hosts; all: with all data-parallel ranks; a number: with so many in a row. For adapters
    under ZeRO 0 to 2."""
    compile: Compile = "auto"
    """How a step runs: auto, the fastest way of the device (on a GPU, in half precision, each block
    as one function of compiled kernels and passes as CUDA graphs); true compiles in float32 and on
    a CPU too; false is the plain path."""
    seed: int = field(default=0, metadata=BY_VALUE)
    """Seed of the adapters, the order of rows and the dropout."""
    save_every: int | None = None
    """Optimizer steps between checkpoints; none means one at the end of each epoch. There is always
    one at the end of the run."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    eval_every: int | None = None
    """Optimizer steps between evaluations; none means one an epoch. One is made at the end, too."""
    best: bool = True
    """Whether the run gives what had the lowest held-out loss, with the last beside it; false gives
    the last."""
    early_stop: int | None = None
    """End the run after this many evaluations in a row without a lower held-out loss; none means
    that it goes through."""
    resume: str = "auto"
    """auto goes on with the run in --output_dir from its newest checkpoint that is whole, or starts
    where there is no run; never refuses a folder that holds a run; a checkpoint's folder goes on
    from that one."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Where the run may be watched: tensorboard, trackio, wandb, mlflow, several joined by commas,
    or none. Each but the first is to be installed: pip install 'llama-lora[wandb]'. metrics.jsonl
    is written whatever this says."""
    plan: bool = True
    """Whether a run that memory cannot hold is refused before any weights load; false tries it."""
    hang_timeout: float = 480.0
    """Seconds without a sign of life after which a rank in training ends the run, the stacks of its
    threads in hang-rank-N.txt; by default before NCCL would, which does not say where it stood."""
    override: list[str] = field(default_factory=list, metadata=BY_KEY)
    """One key of the DeepSpeed JSON, as optimizer.params.lr=1e-4; may be repeated."""
    json: bool = False
    """Whether the last line of standard output is the run's summary as one JSON object."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(AdapterOptions):
    """How a model answers, for every command that has it write."""

    max_new_tokens: int = 256
    """Stop after this many tokens, if no end of text came before."""
    temperature: float = 0.0
    """Randomness of each choice: 0 always takes the likeliest token."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of the choices, where the temperature is above 0; the same for every prompt."""
    precision: Literal["half", "float32"] = "half"
    """What the model computes in; half is the 16-bit type that suits the device."""
    base: Base = "half"
    """How the weights of the blocks are held: half, in what is computed in; fp8, int8 or nf4, as
    train --base does."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(SuiteOptions, RowOptions):
    """Settings of `benchmark`."""

    data: list[Path] = field(default_factory=list)
    """Rows to train on, as train takes them; may be repeated. None means random tokens, each row
    of the batch one document with every position supervised."""
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
    sequence_parallel: int = 1
    """Ranks the tokens of each row are split over, as in train."""
    method: Literal["lora", "full"] = field(default="lora", metadata=BY_VALUE)
    """What trains: lora, adapters beside the frozen model; full, every parameter of the model."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    """The adapters, with --method lora."""
    base: Base = "half"
    """How the frozen weights of the blocks are held, as in train."""
    checkpointing: Checkpointing = "block"
    """What is recomputed in the backward pass, as in train."""
    shard_base: str = field(default=WHOLE, metadata=BARE)
    """Cut the frozen base over data-parallel ranks, as in train."""
    compile: Compile = "auto"
    """How a step runs, as in train."""
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
    sequence_parallel: int = 1
    """Ranks the tokens of each row are split over, as in train."""
    method: Literal["lora", "full"] = field(default="lora", metadata=BY_VALUE)
    """What trains: lora, adapters beside the frozen model; full, every parameter of the model."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    """The adapters, with --method lora."""
    base: Base = "half"
    """How the frozen weights of the blocks are held, as in train."""
    checkpointing: Checkpointing = "block"
    """What is recomputed in the backward pass, as in train."""
    shard_base: str = field(default=WHOLE, metadata=BARE)
    """Cut the frozen base over data-parallel ranks, as in train."""
    compile: Compile = "auto"
    """How a step runs, as in train."""
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
    override: list[str] = field(default_factory=list, metadata=BY_KEY)
    """One key of the DeepSpeed JSON, as in train; may be repeated."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(RowOptions):
    """Settings of `plan`. The model may also be a bare name of a shape, as llama-7b."""

    gpu: str
    """The GPU, as a100-40gb; a wrong name lists all that are known."""
    gpus: int = 1
    """GPUs of a node."""
    nodes: int = 1
    """Nodes of as many GPUs each."""
    network: str = "ndr-400"
    """Between nodes: ndr-400, hdr-200 (an adapter a GPU), 100gbe, 25gbe (a card a node)."""
    deepspeed: Path | None = None
    """The DeepSpeed JSON of the run, as in train."""
    suggest: bool = False
    """Look for the fastest way that fits, write its DeepSpeed JSON and print its command; it
    chooses precision, ZeRO, --tensor_parallel, --shard_base, --checkpointing, --compile and the
    micro-batch."""
    batch: int | None = None
    """With --suggest: rows of an optimizer step over all GPUs, at least one each; none means 16."""
    method: Literal["lora", "full"] = "lora"
    """What trains: adapters, or every parameter."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    """The adapters."""
    base: Base = "half"
    """How the frozen weights of the blocks are held, as in train."""
    tensor_parallel: int = 1
    """Ranks each layer is split over; it divides the number of GPUs of a node."""
    sequence_parallel: int = 1
    """Ranks the tokens of each row are split over, as in train."""
    seq_len: int = 1024
    """Tokens of one row of a batch."""
    pack: bool = True
    """Whether examples of --data share a row, as in train."""
    checkpointing: Checkpointing = "block"
    """What is recomputed in the backward pass, as in train."""
    shard_base: str = field(default=WHOLE, metadata=BARE)
    """Cut the frozen base over data-parallel ranks, as in train."""
    compile: Compile = "auto"
    """How a step runs on the GPU, as in train."""
    data: list[Path] = field(default_factory=list)
    """Training rows as in train, whose real lengths are then planned with; none means full rows of
    --seq_len tokens."""
    rows: int | None = None
    """Rows of --seq_len tokens in an epoch, without --data; none means that the run's length is not
    planned, unless --max_steps gives it."""
    epochs: int = 5
    """Passes over the rows."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; none means all the epochs."""
    override: list[str] = field(default_factory=list, metadata=BY_KEY)
    """One key of the DeepSpeed JSON, as in train; may be repeated."""
    output_dir: Path | None = None
    """Folder for plan.json, plan.png and plan.html, and deepspeed.json with --suggest; none means
    none of them, or `plan` with --suggest."""
    json: bool = False
    """Whether the last line of standard output is the plan as one JSON object."""


@dataclass(frozen=True, kw_only=True)
class AblateOptions(RowOptions):
    """Settings of `ablate`."""

    output_dir: Path
    """Folder for ablation.md, ablation.json and the figures."""
    data: list[Path] = field(default_factory=list)
    """Training rows, as train takes them; may be repeated. None means the bundled ones, or random
    tokens where the model's weights are random too."""
    eval_data: list[Path] = field(default_factory=list)
    """Held-out rows; none means the bundled ones where --data is also none."""
    method: tuple[str, ...] = ("lora", "full")
    """What trains: adapters, every parameter, or one after the other."""
    precision: tuple[str, ...] = ("float32", "bf16")
    """Any of float32, bf16, fp16."""
    rows: int = 8
    """Rows of an optimizer step: in one micro-batch, and in as many micro-batches of one."""
    seq_len: int = 256
    """Tokens of a row."""
    steps: int = 12
    """Optimizer steps of each combination."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    """The adapters."""
    seed: int = 0
    """Seed of the adapters, the order of rows and the dropout."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""
