"""Flags and keys of PEFT, TRL, transformers' Trainer, Axolotl, LLaMA-Factory and Unsloth, and what
each is here. Data alone: `answers` makes a line of it, docs/coming_from.md a table."""

from __future__ import annotations

from llama.settings.options.kinds import Already, Answer, ByValue, Here, Instead, Single


def _switch(on: Single, off: Single) -> ByValue:
    return ByValue({"true": on, "false": off, "auto": Already("it is chosen here")}, on)


def _only_on(on: Single) -> ByValue:
    return ByValue({"false": Already("there is none here"), "none": Already("none here")}, on)


_BF16 = Here("--override bf16.enabled=true --override fp16.enabled=false")
_FP16 = Here("--override fp16.enabled=true --override bf16.enabled=false")
_FLOAT32 = Instead("float32 is --deepspeed ds_configs/lora_float32.json")
_PRECISION = Already("the DeepSpeed JSON says the precision")
_NF4, _INT8 = Here("--base nf4"), Here("--base int8")
_QUANTISED = Instead("--base says how frozen weights are held: half, fp8, int8 or nf4")
_EVALUATION = "held-out rows (--eval_data) are evaluated before, and after each epoch"
_MEASURED = "held-out loss is what is measured"
_EVERY_STEP = Already("metrics.jsonl and --report_to's places have every step")
_NAMED = "--report_to {} tells of the run there; projects are named in the environment: {}"
_UPLOAD = Instead("nothing is uploaded; RUN/adapter is a PEFT folder: hf upload NAME RUN/adapter")
_SAVED = "a checkpoint at the end of each epoch and of the run, the newest 3 kept"
_ATTENTION = Already("the fastest that the device has is taken (--compile auto)")
_LINEARS = Instead("adapters are of linear layers of the blocks; --method full trains everything")
_FILES = Already("the model's own files say it")
_READING = Already("rows are read in parallel and packed at the start, and kept in --data_cache")
_LAUNCHER = Instead("it is the launcher's, before the script: deepspeed --num_gpus N, or torchrun")
_ZERO = Instead("it is ZeRO here: --deepspeed ds_configs/lora_zero3.json cuts the weights up")
_DORA = _switch(Here("--lora.kind dora"), Already("--lora.kind lora is the default"))
_UNIFORM = Already("--lora.start uniform is the default: A uniform and B zero, as PEFT's")
_STARTS = ByValue(
    {
        "true": _UNIFORM,
        "pissa": Here("--lora.start pissa", "pissa"),
        **{f"pissa_niter_{n}": Here(f"--lora.start pissa_niter_{n}") for n in (4, 8, 16, 32)},
    },
    Instead("an adapter starts as --lora.start says: uniform, pissa or pissa_niter_N"),
)
_TARGETS = ByValue(
    {"all": Here("--lora.targets all-linear", "all")}, Here("--lora.targets {}", "q_proj,v_proj")
)
_ONLY_SFT = "supervised fine-tuning is all there is: rows with one good answer each"

_ROWS: tuple[tuple[str, Answer], ...] = (
    # optimizer and schedule
    ("learning_rate lr", Here("--override optimizer.params.lr={}", "2e-4")),
    ("weight_decay", Here("--override optimizer.params.weight_decay={}", "0.01")),
    ("adam_epsilon adam_eps", Here("--override optimizer.params.eps={}", "1e-8")),
    (
        "adam_beta1 adam_beta2",
        Instead("both stand together: --override 'optimizer.params.betas=[0.9,0.95]'"),
    ),
    ("max_grad_norm gradient_clip_val", Here("--override gradient_clipping={}", "0.3")),
    (
        "optim optimizer",
        ByValue(
            dict.fromkeys(
                ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"),
                Already("AdamW is the optimizer"),
            ),
            Instead("the optimizer is AdamW (or Adam), with states of the adapter alone"),
        ),
    ),
    (
        "lr_scheduler_type lr_scheduler",
        ByValue(
            {
                "linear": Here("--override scheduler.params.warmup_min_lr=0", "linear"),
                "cosine": Here(
                    "--override scheduler.type=WarmupCosineLR "
                    "--override scheduler.params.warmup_min_lr=null",
                    "cosine",
                ),
                "constant": Here("--override scheduler=null", "constant"),
                "constant_with_warmup": Here(
                    "--override scheduler.type=WarmupLR "
                    "--override scheduler.params.total_num_steps=null",
                    "constant_with_warmup",
                ),
            },
            Instead("write one of WarmupLR, WarmupDecayLR, WarmupCosineLR in the DeepSpeed JSON"),
        ),
    ),
    (
        "warmup_steps",
        ByValue(
            {"0": Here("--override scheduler.params.warmup_num_steps=1", "0")},  # the fewest
            Here("--override scheduler.params.warmup_num_steps={}", "100", whole=True),
        ),
    ),
    (
        "warmup_ratio",
        Instead(
            "warm-up is 3% of the steps; or a number of steps: "
            "--override scheduler.params.warmup_num_steps=N"
        ),
    ),
    # batch and length
    (
        "per_device_train_batch_size micro_batch_size per_gpu_train_batch_size",
        Here("--override train_micro_batch_size_per_gpu={}", "4", whole=True),
    ),
    (
        "batch_size",
        Instead(
            "rows of a step over all ranks (as Axolotl and alpaca-lora mean it) are --override "
            "train_batch_size=N --override gradient_accumulation_steps=auto; rows of a rank at a "
            "time (as scripts mean it) --override train_micro_batch_size_per_gpu=N"
        ),
    ),
    (
        "gradient_accumulation gradient_accumulation_steps",
        Here("--override gradient_accumulation_steps={}", "8", whole=True),
    ),
    (
        "per_device_eval_batch_size eval_batch_size",
        Already("evaluation takes the micro-batch of training"),
    ),
    ("num_train_epochs num_epochs n_epochs", Here("--epochs {}", "3", whole=True)),
    (
        "max_length max_seq_length max_seq_len cutoff_len sequence_len model_max_length",
        Here("--seq_len {}", "2048", whole=True),
    ),
    (
        "packing sample_packing neat_packing",
        _switch(Already("--pack true is the default"), Here("--pack false", "false")),
    ),
    ("eval_sample_packing eval_packing pad_to_sequence_len group_by_length", _READING),
    ("max_samples max_train_samples", Instead("give a smaller file; --max_steps N stops sooner")),
    # precision and memory
    ("bf16", _switch(_BF16, _PRECISION)),
    ("fp16", _switch(_FP16, _PRECISION)),
    ("tf32", Already("half precision needs none")),
    (
        "torch_dtype dtype",
        ByValue(
            {
                **dict.fromkeys(("bfloat16", "bf16", "torch.bfloat16"), _BF16),
                **dict.fromkeys(("float16", "fp16", "torch.float16"), _FP16),
                **dict.fromkeys(("float32", "fp32", "torch.float32"), _FLOAT32),
            },
            _PRECISION,
        ),
    ),
    ("load_in_4bit", _only_on(_NF4)),
    ("bnb_4bit_quant_type", ByValue({"nf4": _NF4}, _QUANTISED)),
    ("bnb_4bit_*", Already("--base nf4 quantises twice, and computes in the JSON's precision")),
    ("quantization_bit", ByValue({"4": Here("--base nf4", "4"), "8": _INT8}, _QUANTISED)),
    ("load_in_8bit", _only_on(_INT8)),
    ("quantization_method", _only_on(_QUANTISED)),
    (
        "gradient_checkpointing use_gradient_checkpointing",
        _switch(Already("--checkpointing block is the default"), Here("--checkpointing none")),
    ),
    ("gradient_checkpointing_kwargs", Already("recomputation is never reentrant")),
    ("flash_attn flash_attention flash_attention_2 use_flash_attention_2", _ATTENTION),
    ("xformers_attention sdp_attention eager_attention s2_attention", _ATTENTION),
    ("attn_implementation liger_* use_liger_kernel enable_liger_kernel use_unsloth", _ATTENTION),
    ("torch_compile", _switch(Already("--compile auto is the default"), Here("--compile false"))),
    ("zero_stage", Here("--override zero_optimization.stage={}", "2")),
    ("fsdp*", _only_on(_ZERO)),
    ("ddp_*", _only_on(Already("DeepSpeed reduces the adapter's gradients"))),
    ("tensor_parallel_size tp_size", Here("--tensor_parallel {}", "1")),
    ("context_parallel_size sequence_parallel_degree cp_size", Here("--sequence_parallel {}", "2")),
    ("num_gpus nproc_per_node num_processes n_gpu device_map", _LAUNCHER),
    # adapters
    ("lora_r lora_rank r", Here("--lora.rank {}", "16", whole=True)),
    ("lora_alpha", Here("--lora.alpha {}", "32")),
    ("lora_dropout", Here("--lora.dropout {}", "0.05")),
    ("target_modules lora_target_modules lora_target lora_targets", _TARGETS),
    (
        "lora_target_linear",
        _switch(Here("--lora.targets all-linear"), Already("--lora.targets names the layers")),
    ),
    (
        "use_rslora peft_use_rslora",
        _switch(Here("--lora.scale alpha/sqrt(r)"), Already("--lora.scale alpha/r is the default")),
    ),
    ("use_dora peft_use_dora", _DORA),
    ("init_lora_weights", _STARTS),
    ("pissa_init", _switch(Here("--lora.start pissa"), _UNIFORM)),
    ("pissa_iter", Here("--lora.start pissa_niter_{}", "16", whole=True)),
    ("loraplus_lr_ratio", Here("--lora.b_lr_ratio {}", "16")),
    ("modules_to_save lora_modules_to_save additional_target", _only_on(_LINEARS)),
    ("bias lora_bias loraplus_lr_embedding", _only_on(_LINEARS)),
    ("task_type lora_fan_in_fan_out", Already("the models are causal, their layers linear")),
    (
        "adapter",
        ByValue(
            {
                "lora": Already("--method lora is the default"),
                "qlora": Here("--base nf4", "qlora"),
            }
        ),
    ),
    (
        "finetuning_type",
        ByValue(
            {
                "lora": Already("--method lora is the default"),
                "full": Here("--method full", "full"),
            },
            _LINEARS,
        ),
    ),
    (
        "lora_model_dir adapter_name_or_path peft_model_id",
        Instead("--init_adapter begins a run with it; generate and evaluate use it: --adapter"),
    ),
    ("neftune_noise_alpha", Instead("it is not here; --lora.dropout is what there is against it")),
    # model and data
    (
        "model_name_or_path base_model model_name model_id model_path base_model_config",
        Here("--model {}", "meta-llama/Llama-3.2-1B"),
    ),
    ("tokenizer_name tokenizer_name_or_path", Here("--tokenizer {}", "tokenizer.json")),
    ("model_type tokenizer_type is_llama_derived_model max_position_embeddings", _FILES),
    ("special_tokens added_tokens_overrides resize_vocab", Instead("give a tokenizer that has it")),
    ("trust_remote_code", Instead("no code of a model's folder is ever run; leave it out")),
    ("hf_token use_auth_token", Instead("set HF_TOKEN in the environment")),
    (
        "dataset datasets dataset_name dataset_path data_path train_file train_data",
        Here("--data {}", "rows.jsonl"),
    ),
    ("eval_dataset validation_file test_datasets", Here("--eval_data {}", "heldout.jsonl")),
    ("dataset_dir", Instead("give the file's own path: --data DIR/FILE")),
    (
        "val_set_size val_size test_size split_dataset_ratio",
        ByValue(
            dict.fromkeys(("0", "0.0"), Already("no rows of --data are held out")),
            Here("--eval_split {}", "0.1"),
        ),
    ),
    (
        "dataset_split train_split",
        Instead("it stands after the name of a hub's data set: --data ORG/NAME:train"),
    ),
    (
        "dataset_text_field",
        ByValue(
            {"text": Already("a plain text is the field `text`")},
            Here("--columns text={}", "content"),
        ),
    ),
    ("dataset_prepared_path", Here("--data_cache {}", "last_run_prepared")),
    ("overwrite_cache preprocessing_num_workers", _READING),
    ("dataset_num_proc dataloader_num_workers dataloader_pin_memory", _READING),
    ("remove_unused_columns shuffle_merged_datasets streaming", _READING),
    (
        "chat_template",
        ByValue(
            {"tokenizer_default": Already("the model's own template is the default")},
            Here("--template {}", "llama3"),
        ),
    ),
    ("default_system_message", Instead("rows say it: a field `system`, or a system turn")),
    (
        "train_on_inputs train_on_prompt",
        _switch(
            Instead("prompts are never learnt; rows of `text` are learnt whole"),
            Already("prompts are masked"),
        ),
    ),
    (
        "completion_only_loss assistant_only_loss train_on_responses_only",
        _switch(Already("answers alone are learnt"), Instead("rows of `text` are learnt whole")),
    ),
    ("stage", ByValue({"sft": Already("fine-tuning is all there is")}, Instead(_ONLY_SFT))),
    ("rl dpo_* pref_* kto_*", _only_on(Instead(_ONLY_SFT))),
    # the run
    ("output output_path out_dir save_path", Here("--output_dir {}", "out")),
    ("overwrite_output_dir", Instead("a folder that holds a run is gone on with; give another")),
    ("save_steps", Here("--save_every {}", "500", whole=True)),
    ("save_total_limit", Here("--keep {}", "2", whole=True)),
    (
        "save_strategy saves_per_epoch",
        ByValue(
            {"epoch": Already(_SAVED), "1": Already(_SAVED)},
            Instead(f"{_SAVED}; --save_every N saves more often"),
        ),
    ),
    ("save_safetensors save_only_model", Already("checkpoints are safetensors, and whole")),
    (
        "eval_strategy evaluation_strategy evals_per_epoch do_eval",
        ByValue(
            {"epoch": Already(_EVALUATION), "1": Already(_EVALUATION)},
            Instead(f"{_EVALUATION}; --eval_every N: every N steps"),
        ),
    ),
    ("eval_steps", Here("--eval_every {}", "50", whole=True)),
    ("do_train", Already("train trains")),
    ("early_stopping_patience", Here("--early_stop {}", "3", whole=True)),
    (
        "load_best_model_at_end",
        ByValue({"false": Here("--best false", "false")}, Already("--best true is the default")),
    ),
    ("metric_for_best_model", ByValue({"eval_loss": Already(_MEASURED)}, Instead(_MEASURED))),
    ("logging_steps logging_strategy logging_first_step", _EVERY_STEP),
    ("logging_dir", Already("it is RUN/tensorboard")),
    ("plot_loss", Already("RUN/report.html draws it")),
    ("use_wandb", _only_on(Here("--report_to wandb"))),
    ("wandb_*", _only_on(Instead(_NAMED.format("wandb", "WANDB_PROJECT")))),
    ("mlflow_*", _only_on(Instead(_NAMED.format("mlflow", "MLFLOW_EXPERIMENT_NAME")))),
    ("trackio_*", _only_on(Instead(_NAMED.format("trackio", "TRACKIO_PROJECT")))),
    ("comet_*", _only_on(Instead("comet is a section of the DeepSpeed JSON (comet.enabled)"))),
    ("run_name", Instead("a run is named by its folder: --output_dir runs/NAME")),
    ("push_to_hub hub_*", _only_on(_UPLOAD)),
    (
        "resume_from_checkpoint auto_resume_from_checkpoints",
        ByValue(
            {
                "true": Already("--resume auto is the default"),
                "false": Here("--resume never", "false"),
            },
            Here("--resume {}", "runs/mine/checkpoints/step-40"),
        ),
    ),
    ("data_seed", Already("--seed is of the order of the rows too")),
    ("use_cpu no_cuda", Instead("set CUDA_VISIBLE_DEVICES to nothing in the environment")),
)

ELSEWHERE: dict[str, Answer] = {name: answer for names, answer in _ROWS for name in names.split()}
"""By name; one that ends in `*` is of every name that begins so."""
