"""The main job: fine-tune, watch, compare, keep."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama.config import TrainOptions
from llama.data.batches import eval_batches
from llama.errors import TrainingError
from llama.inference import summed_loss
from llama.lora.attach import adapters
from llama.lora.peft_format import AdapterConfig
from llama.metrics import (
    JSONLSink,
    NullSink,
    Progress,
    Sink,
    Sinks,
    Stopwatch,
    TensorBoardSink,
    mfu,
    peak_memory_bytes,
    step_flops,
)
from llama.model.transformer import Transformer
from llama.parallel.mesh import Mesh, create_mesh
from llama.train import engine as processes
from llama.train.adapter_files import save_adapter
from llama.train.build import build_engine
from llama.train.checks import FirstStepsCheck
from llama.train.ends import Ends
from llama.train.engine import Engine, Step
from llama.train.plan import Inputs, Schedule, read_inputs, schedule
from llama.train.record import choose_output_dir, environment, write_json
from llama.train.samples import answers, as_text, choose_prompts, write_samples


def train(options: TrainOptions) -> int:
    """Run `launcher/train.py`; returns the exit code. `UserError` comes before any weights load."""
    inputs = read_inputs(options)
    device = processes.start_processes()
    try:
        mesh = create_mesh(options.tensor_parallel)
        run = Run(inputs, mesh, device)
        summary = run.run()
    finally:
        processes.stop_processes()
    if mesh.is_main and options.json:
        print(json.dumps(summary))
    return run.ends.status


class Run:
    """One run on one rank."""

    def __init__(self, inputs: Inputs, mesh: Mesh, device: torch.device) -> None:
        self.inputs = inputs
        self.options = inputs.options
        self.mesh = mesh
        self.device = device
        self.plan: Schedule = schedule(inputs, mesh)
        self.folder = choose_output_dir(self.options.output_dir, mesh)
        self.progress = Progress(self.plan.total_steps, mesh.is_main)
        self.engine = self._build()
        self.ends = Ends(mesh.rank, self.folder, self.options.hang_timeout, mesh.highest)
        self.check = FirstStepsCheck(self.engine.trainable)
        self.sink = self._sinks()
        self.watch = Stopwatch()
        self.summary: dict[str, Any] = {"status": "failed", "steps": 0}
        self._started = time.monotonic()
        self._tokens, self._seconds = 0, 0.0

    def run(self) -> dict[str, Any]:
        """Evaluate, train every epoch, evaluate again, keep the adapter; returns the summary."""
        self._write_record()
        try:
            with self.ends:
                self._train()
            self.summary["status"] = "interrupted" if self.ends.status else "finished"
        finally:
            self.summary["seconds"] = round(time.monotonic() - self._started, 1)
            self.summary["peak_memory_bytes"] = peak_memory_bytes(self.device)
            if self.mesh.is_main:
                write_json(self.folder / "summary.json", self.summary)
            self.sink.close()
            self.progress.close()
        if not self.ends.status:
            self._say_where()
        return self.summary

    # Building

    def _build(self) -> Engine:
        options, resolved = self.options, self.plan.resolved
        for line in [self.inputs.training.report.text(), *resolved.notes]:
            self.progress.say(line)
        return build_engine(self.inputs.source, options, resolved, self.mesh, self.device)

    def _sinks(self) -> Sink:
        if not self.mesh.is_main:
            return NullSink()
        tensorboard = TensorBoardSink(self.folder / "tensorboard")
        return Sinks(JSONLSink(self.folder / "metrics.jsonl"), tensorboard)

    def _trainable(self) -> dict[str, Any]:
        """Count, share and bytes of what trains, over the whole model."""
        config, lora = self.inputs.source.config, self.options.lora
        count = config.lora_parameter_count(lora.rank, lora.targets)
        total = config.parameter_count() + count
        return {
            "trainable_parameters": count,
            "total_parameters": total,
            "trainable_share": count / total,
            "optimizer_state_bytes_expected": 12 * count,
        }

    def _write_record(self) -> None:
        self.trainable = self._trainable()
        t = self.trainable
        self.progress.say(
            f"{t['trainable_parameters']:,} of {t['total_parameters']:,} parameters train "
            f"({t['trainable_share']:.2%}); optimizer states for them alone"
        )
        if not self.mesh.is_main:
            return
        data = [self.inputs.training, self.inputs.held_out]
        record = {
            "options": dataclasses.asdict(self.options),
            "deepspeed": self.plan.resolved.engine,
            "precision": self.plan.resolved.precision,
            "notes": self.plan.resolved.notes,
            "steps": self.plan.total_steps,
            "topology": self.mesh.as_json(),
            **self.trainable,
            "model": dataclasses.asdict(self.inputs.source.config),
            "model_fingerprint": self.inputs.source.reader.fingerprint(),
            "data": [{"path": str(d.path), "sha256": d.sha256} for d in data if d],
            **environment(self.device),
        }
        write_json(self.folder / "run.json", record)

    # Training

    def _train(self) -> None:
        model = self.engine.model
        assert isinstance(model, Transformer)
        for block in model.layers:
            block.register_forward_pre_hook(lambda *_: self.ends.beat())
        prompts = choose_prompts(self.inputs.held_out, self.inputs.template, self.inputs.tokenizer)
        self.summary["eval_loss_before"] = self._evaluate(epoch=0)
        before = answers(model, self.inputs.tokenizer, prompts)
        self.summary["epoch_losses"] = []
        for epoch in range(self.options.epochs):
            if self.engine.steps < self.plan.total_steps:
                self._epoch(epoch)
            if self.ends.status:
                return
        self._save(self.folder / "adapter")
        after = answers(model, self.inputs.tokenizer, prompts)
        if prompts and self.mesh.is_main:
            write_samples(self.folder / "samples.jsonl", prompts, before, after)
            text = as_text(prompts, before, after)
            self.sink.text(self.engine.steps, "samples", f"```\n{text}\n```")
            self.progress.say(f"\n{text}\n")

    def _epoch(self, epoch: int) -> None:
        loss_sum, supervised = 0.0, 0
        self.watch.lap()
        for window in self.plan.epochs.windows(epoch):
            if self.engine.steps >= self.plan.total_steps:
                break
            step = self.engine.step(window)
            loss_sum += step.loss_sum
            supervised += step.supervised
            self._after_step(epoch, step, self.watch.lap())
            if self.ends.asked():
                self.progress.say(f"stopped after step {self.engine.steps}")
                self._save(self.folder / "checkpoints" / f"step-{self.engine.steps}" / "adapter")
                return
        mean = loss_sum / max(supervised, 1)
        self.summary["epoch_losses"].append(mean)
        self.progress.say(f"epoch {epoch}: average loss {mean:.4f}")
        self.summary["eval_loss"] = self._evaluate(epoch + 1)
        self._log_adapter_norms()
        self._save(self.folder / "checkpoints" / f"step-{self.engine.steps}" / "adapter")

    def _after_step(self, epoch: int, step: Step, seconds: float) -> None:
        self.summary["steps"] = self.engine.steps
        problems = self.check.after_step(step.applied, step.learning_rate)
        if problems:
            raise TrainingError("\n".join(problems))
        if self.engine.steps == 1:
            self._check_optimizer_state()
        self._tokens += step.tokens
        self._seconds += seconds
        self.summary["tokens_per_second"] = round(self._tokens / self._seconds, 1)
        rate = step.tokens / seconds
        flops = step_flops(self.inputs.source.config, step.tokens, step.supervised) / seconds
        values = {
            "epoch": epoch,
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "loss_scale": step.loss_scale,
            "skipped": not step.applied,
            "tokens": step.tokens,
            "supervised_tokens": step.supervised,
            "seconds": seconds,
            "tokens_per_second": rate,
            "mfu": mfu(flops, self.mesh.world_size, self.device),
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }
        self.sink.scalars(self.engine.steps, values)
        self.progress.step(epoch, step.loss, rate, seconds)
        self.ends.beat(self.engine.steps)

    def _check_optimizer_state(self) -> None:
        """The optimizer holds at most float32 masters and two moments of the adapter, and nothing
        of the base: the first step has made its states."""
        held = self.engine.optimizer_state_bytes()
        most = 12 * sum(p.numel() for p in self.engine.trainable.values())
        padding = 1 << 16  # ZeRO pads its flat buffers to the number of ranks
        if held > most + padding:
            raise TrainingError(
                f"the optimizer holds {held:,} bytes, and the adapter's states need {most:,}: "
                "something other than the adapter is being optimized"
            )
        self.summary["optimizer_state_bytes"] = held
        self.progress.say(f"optimizer states: {held:,} bytes on this rank")

    # Watching and keeping

    def _evaluate(self, epoch: int) -> float | None:
        held_out = self.inputs.held_out
        if held_out is None:
            return None
        mesh = self.mesh
        batches = eval_batches(
            held_out.packed,
            self.plan.resolved.micro_batch,
            mesh.data_parallel_rank,
            mesh.data_parallel_size,
        )
        total, supervised = summed_loss(self.engine.model, batches, self.device)
        both = torch.tensor([total, float(supervised)], dtype=torch.float64, device=self.device)
        dist.all_reduce(both, group=mesh.data_parallel_group)
        loss = float(both[0] / both[1])
        self.sink.scalars(self.engine.steps, {"epoch": epoch, "eval_loss": loss})
        self.progress.say(f"held-out loss {loss:.4f} after {epoch} epochs")
        return loss

    def _log_adapter_norms(self) -> None:
        for factor in ("a", "b"):
            norms = [
                getattr(adapter, factor).detach().float().norm().cpu()
                for _, adapter in adapters(self.engine.model)
            ]
            name = f"adapter_norms/{factor.upper()}"
            self.sink.histogram(self.engine.steps, name, torch.stack(norms))

    def _save(self, folder: Path) -> None:
        lora = self.options.lora
        config = AdapterConfig(
            lora.rank, lora.alpha, lora.dropout, lora.targets, self.inputs.source.name
        )
        if self.mesh.is_main:
            folder.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(self.engine, folder, config)

    def _say_where(self) -> None:
        losses = ", ".join(f"{loss:.4f}" for loss in self.summary["epoch_losses"])
        self.progress.say(f"average loss of each epoch: {losses}")
        if self.inputs.held_out is not None:
            before, after = self.summary["eval_loss_before"], self.summary["eval_loss"]
            self.progress.say(f"held-out loss: {before:.4f} before, {after:.4f} after")
        self.progress.say(f"adapter (PEFT): {self.folder / 'adapter'}")
        self.progress.say(f"watch: tensorboard --logdir {self.folder / 'tensorboard'}")
