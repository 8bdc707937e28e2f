"""Weights & Biases: wandb.ai or a server of one's own; with WANDB_MODE=offline a local folder.

The one importer of wandb.
"""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch

from llama.metrics.sinks.sink import COLUMNS, PROJECT, Sink, Status, Watched
from llama.pages.sample import Sample


class WandbSink(Sink):
    """A run of WANDB_PROJECT, or of `PROJECT`. Nothing of the machine, its terminal or its files
    is sent, and no error report."""

    @classmethod
    def problems(cls) -> list[str]:
        """It would ask for a key in the terminal."""
        import wandb
        from wandb.sdk.lib import wbauth

        settings = wandb.Settings()
        settings.update_from_env_vars(dict(os.environ))
        if settings._offline or settings._noop:
            return []
        known = wbauth.authenticate_session(
            host=settings.base_url, source="llama-lora", prompt=False, update_session=False
        )
        if known is not None:
            return []
        what = "no account is known here; run wandb login, or set WANDB_MODE=offline"
        return [f"--report_to wandb: {what}"]

    def __init__(self, run: Watched, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # slow, and read from the environment as it is imported

        self._wandb = wandb
        name = run.ids.get("wandb") or uuid.uuid4().hex[:8]
        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            disable_code=True,
            init_timeout=30,
            finish_timeout=20,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or run.name,
            id=name,
            resume="allow",
            dir=str(run.folder),
            config=dict(config),
            settings=settings,
        )
        run.ids.keep("wandb", name)
        # its history only grows: of a step that it has it takes nothing more
        self._offline = self._run.offline
        self._first = run.step if self._offline else self._run.step

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        if step >= self._first:
            self._run.log({name: self._wandb.Histogram(values.tolist())}, step=step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        table = self._wandb.Table(columns=list(COLUMNS), data=[list(astuple(s)) for s in samples])
        self._run.log({"samples": table})  # beside the newest step

    def end(self, status: Status, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if status == "finished" else 1)

    @property
    def how_to_look(self) -> str | None:
        if self._offline:
            return shlex.join(["wandb", "sync", self._run.settings.sync_dir])
        return self._run.url
