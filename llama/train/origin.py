"""What a run is made of, as the card and the JSON beside its result say it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from llama.adapters.peft_format import peft_hash
from llama.data.prepare import Prepared
from llama.files.hub_rows import hub_name
from llama.files.weighted import weighted
from llama.launch.packages import COMPUTING
from llama.methods.about import About, Origin
from llama.settings.options.marks import BY_VALUE, marked
from llama.tokenizer.identity import tokenizer_hash
from llama.train.start.inputs import Inputs
from llama.train.start.schedule import Schedule
from llama.weights.hub import is_hub_name
from llama.weights.open_model import BUNDLED, BUNDLED_FROM, ModelSource, local_path

_SHOWN = 8
"""Names of one option that are written."""
_ELSEWHERE = ("method", "seq_len", "template")
"""Settings that have a place of their own."""


def origin_of(inputs: Inputs, plan: Schedule) -> Origin:
    """Reads some of the base's weights."""
    options, template = inputs.options, inputs.template
    tokenizer: dict[str, Any] = {"sha256": tokenizer_hash(inputs.tokenizer)}
    if options.tokenizer is not None:
        tokenizer["path"] = str(options.tokenizer.absolute())
    return Origin(
        method=options.method,
        base=_base(inputs.source),
        tokenizer=tokenizer,
        template=template.name,
        jinja=template.jinja(inputs.tokenizer),
        seq_len=options.seq_len,
        data=[
            _data(option, getattr(options, option), data)
            for option, data in (("data", inputs.training), ("eval_data", inputs.held_out))
            if data is not None
        ],
        settings=_settings(inputs, plan),
        versions={name: metadata.version(name) for name in COMPUTING},
    )


def about(origin: Origin, step: int, summary: Mapping[str, Any], eval_loss: float | None) -> About:
    """What is known at `step`; `eval_loss` is of it, None where it was not evaluated."""
    before, epochs = summary["eval_loss_before"], summary["epoch_losses"]
    return About(origin, step, before, eval_loss, tuple(epochs))


def _base(source: ModelSource) -> dict[str, Any]:
    path = local_path(source.name)
    hub = source.name if path is None and is_hub_name(source.name) else None
    return {
        "name": source.name,
        "path": path and str(path.absolute()),
        "hub": BUNDLED_FROM if source.name == BUNDLED else hub,
        "sampled_sha256": source.reader.sampled_hash(),
    }


def _data(option: str, asked: list[Path], data: Prepared) -> dict[str, Any]:
    """By the names that the user gave; of the bundled rows, and those held out of --data, by the
    files' own."""
    names = list(map(str, asked)) or [file.name for file in data.files]
    hub = [found.repo for path in weighted(asked) if (found := hub_name(path.path))]
    report = data.report
    return {
        "option": option,
        "names": names[:_SHOWN],
        "more_names": max(0, len(names) - _SHOWN),
        "hub": hub,
        "sha256": data.sha256,
        "rows": report.rows,
        "examples": report.examples,
        "tokens": report.tokens,
        "supervised_tokens": report.supervised_tokens,
    }


def _settings(inputs: Inputs, plan: Schedule) -> dict[str, Any]:
    """What decides the arithmetic, by the names of the options and of the DeepSpeed JSON."""
    options, engine = inputs.options, plan.resolved.engine
    settings: dict[str, Any] = {
        name: value
        for name, value in marked(options, BY_VALUE)
        if name not in _ELSEWHERE and not (name.startswith("lora.") and options.method != "lora")
    }
    if options.init_adapter is not None:
        settings["init_adapter"] = str(options.init_adapter)
        settings["init_adapter_sha256"] = peft_hash(options.init_adapter)
    settings |= {"epochs": options.epochs, "steps": plan.total_steps}
    settings["precision"] = plan.resolved.precision
    for name in ("train_batch_size", "optimizer", "scheduler", "gradient_clipping"):
        settings[name] = engine.get(name)
    return {name: value for name, value in settings.items() if value not in (None, ())}
