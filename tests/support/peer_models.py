"""transformers + PEFT as the peer of `peer_benchmark.py`: one model, set up as its users do."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from model_files import huggingface_config
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from llama.assembly.engine import DTYPES
from llama.commands.benchmark.command import Job
from llama.data.types import IGNORE, Example
from llama.errors import raise_if
from llama.files.inputs import nearest
from llama.model.config import PART_OF
from llama.settings.deepspeed_json import Resolved
from llama.weights.names import from_huggingface, to_huggingface

PACKAGES = {"default": None, "bf16-adapters": None, "liger": "liger_kernel", "flash": "flash_attn"}
"""What a peer may be made of, and the package that it needs; with one it runs on CUDA only."""


def chosen(asked: tuple[str, ...], precision: str, device: torch.device) -> list[str]:
    """The peers to run, those with liger last: its patch of transformers stays."""
    usable = {part: _unusable(part, precision, device) is None for part in PACKAGES}
    if asked == ("auto",):
        adapters = ["default", "bf16-adapters"] if usable["bf16-adapters"] else ["default"]
        kernels = [part for part in ("flash", "liger") if usable[part]]
        return adapters + [f"{a}+{k}" for k in kernels for a in adapters]
    problems = []
    for part in dict.fromkeys(part for peer in asked for part in peer.split("+")):
        if part not in PACKAGES:
            problems.append(f"--peer: no such part {part!r}{nearest(part, PACKAGES)}")
        elif reason := _unusable(part, precision, device):
            problems.append(f"--peer: {part} {reason}")
    raise_if(problems)
    return sorted(asked, key=lambda peer: "liger" in peer)


def _unusable(part: str, precision: str, device: torch.device) -> str | None:
    if part == "bf16-adapters" and precision != "bf16":
        return "is for bf16: torch's GradScaler refuses fp16 gradients"
    package = PACKAGES[part]
    if package is None:
        return None
    if device.type != "cuda":
        return "runs on CUDA only"
    return None if importlib.util.find_spec(package) else f"needs the package {package}"


class Theirs:
    """transformers + PEFT as Trainer(bf16=True or fp16=True) drives them, without its own costs."""

    def __init__(
        self, parts: list[str], job: Job, resolved: Resolved, device: torch.device
    ) -> None:
        self.device, self.dtype = device, DTYPES[resolved.precision]
        self.model = self._build(parts, job)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.weights, self.trainable = weights, sum(p.numel() for p in weights)
        params = resolved.engine["optimizer"]["params"]
        self.optimizer = torch.optim.AdamW(
            weights, params["lr"], weight_decay=0.0, fused=device.type == "cuda"
        )
        self.autocast = weights[0].dtype != self.dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.clipping = resolved.gradient_clipping

    def _build(self, parts: list[str], job: Job) -> Any:
        if "liger" in parts:
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama(
                rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=True
            )
        config = huggingface_config(job.source.config)
        config.use_cache = False
        attention = "flash_attention_2" if "flash" in parts else "sdpa"
        with torch.device(self.device):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=self.dtype, attn_implementation=attention
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(job.source.reader.read(str(from_huggingface(name))))
        lora = job.options.lora
        adapters = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=[_their_name(target) for target in lora.targets],
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, adapters, autocast_adapter_dtype="bf16-adapters" not in parts)
        if job.options.checkpointing == "block":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    def step(self, window: list[dict[str, torch.Tensor]]) -> object:
        self.model.train()
        for batch in window:
            self.scaler.scale(self._loss(batch) / len(window)).backward()
        if self.clipping:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.weights, self.clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return None

    @torch.no_grad()
    def loss(self, examples: list[Example]) -> float:
        self.model.eval()
        return float(self._loss(padded(examples)))

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        on_device = {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}
        with torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
            return self.model(**on_device).loss


def _their_name(target: str) -> str:
    return to_huggingface(f"layers.0.{PART_OF[target]}.{target}.weight").split(".")[-2]


def padded(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A batch padded on the right to its longest example; no mask where there is no padding."""
    longest = max(len(example.input_ids) for example in examples)
    room = [longest - len(example.input_ids) for example in examples]
    ids = [e.input_ids + [0] * n for e, n in zip(examples, room, strict=True)]
    labels = [e.labels + [IGNORE] * n for e, n in zip(examples, room, strict=True)]
    batch = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
    if any(room):
        batch["attention_mask"] = torch.tensor([[1] * (longest - n) + [0] * n for n in room])
    pin = torch.cuda.is_available()
    return {name: tensor.pin_memory() if pin else tensor for name, tensor in batch.items()}
