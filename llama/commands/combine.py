"""`launcher/combine.py`: one adapter of several, each times a weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llama.adapters import peft_format
from llama.adapters.adapter import Tensors
from llama.adapters.combine import Part, combined
from llama.adapters.peft_format import AdapterConfig
from llama.assembly.adapter import Opened, open_for_use
from llama.assembly.model import read_adapter
from llama.errors import TrainingError, UserError, raise_if
from llama.files.atomic import write_folder
from llama.files.json_text import json_text
from llama.methods.about import TEMPLATE, TRAINING, files_of_combined
from llama.model.config import ModelConfig
from llama.notes import note
from llama.settings import AdapterOptions, CombineOptions, LoRAOptions, check_combine
from llama.settings.combine_command import weights
from llama.tokenizer.identity import tokenizer_hash
from llama.weights.fields import read_json_object


def combine(options: CombineOptions) -> int:
    """Write the adapter and print its folder. Raises `UserError` for adapters that do not go
    together, and where it cannot be written."""
    raise_if(check_combine(options))
    given = weights(options.adapter)
    opened = [
        open_for_use(AdapterOptions(adapter=path, model=options.model, force=options.force))
        for path, _ in given
    ]
    _require_one_base(opened, options.force)
    parts = [_part(one, weight) for one, (_, weight) in zip(opened, given, strict=True)]
    raise_if(_misfits(opened, parts, options.how))
    state, lora = combined(parts, options.how)
    base = opened[0].source
    config = AdapterConfig(lora, base.name, base.config.n_layers)
    said = [f"{path}:{weight:g}" for path, weight in given]
    contents = peft_format.contents(state, config) | _beside(opened, said, lora, options.how)
    try:
        write_folder(
            options.output_dir, contents, lambda partial: _prove(partial, base.config, state)
        )
    except OSError as error:
        where = f"--output_dir: {options.output_dir} cannot be written"
        raise UserError(f"{where}: {error.strerror or error}") from None
    told = {"adapter": str(options.output_dir), "of": said, "how": options.how, "rank": lora.rank}
    print(json_text(told) if options.json else options.output_dir)
    return 0


def _prove(folder: Path, config: ModelConfig, state: Tensors) -> None:
    """Read back what was written. Raises `TrainingError` where it is not the adapter `state`."""
    try:
        found = read_adapter(folder, config)[1]
    except UserError as error:
        raise TrainingError(f"what was written cannot be read back: {error}") from None
    if found.keys() != state.keys() or any(not torch.equal(found[n], state[n]) for n in found):
        raise TrainingError(f"{folder}: what was written, read back, is another adapter")


def _part(opened: Opened, weight: float) -> Part:
    assert opened.adapter is not None
    layers, state = read_adapter(opened.adapter, opened.source.config)
    return Part(layers, state, weight)


def _require_one_base(opened: Sequence[Opened], force: bool) -> None:
    """Two bases of one shape take the same adapters, and the sum is then right on neither."""
    first, problems = opened[0], []
    base, tokens = first.source.reader.sampled_hash(), tokenizer_hash(first.tokenizer)
    for one in opened[1:]:
        if one.source.reader.sampled_hash() != base:
            problems.append(f"was trained on {one.source.name}, the first on {first.source.name}")
        elif tokenizer_hash(one.tokenizer) != tokens:
            problems.append("was trained with another tokenizer than the first")
        else:
            continue
        problems[-1] = f"--adapter {one.adapter}: {problems[-1]}"
    if not force:
        raise_if([f"{line}: give adapters of one base, or --force" for line in problems])
    for line in problems:
        note(f"{line}: combined all the same")


def _misfits(opened: Sequence[Opened], parts: Sequence[Part], how: str) -> list[str]:
    problems = []
    for one, part in zip(opened, parts, strict=True):
        kinds = {options.kind for options in part.layers.values()} - {"lora"}
        problems += [
            f"--adapter {one.adapter}: is of the kind {kind}, which is no sum of factors: only "
            "those of the kind lora are combined"
            for kind in sorted(kinds)
        ]
    ranks = {options.rank for part in parts for options in part.layers.values()}
    if how == "linear" and len(ranks) > 1:
        found = ", ".join(map(str, sorted(ranks)))
        problems.append(f"--how linear: expected adapters of one rank, found {found}: take cat")
    return problems


def _beside(
    opened: Sequence[Opened], said: Sequence[str], lora: LoRAOptions, how: str
) -> dict[str, bytes]:
    """What says what it is, where each of them does."""
    folders = [one.adapter for one in opened if one.adapter is not None]
    if any(one.recorded is None for one in opened):
        note(f"an adapter without {TRAINING} is among them: the new one has none either")
        return {}
    names = {one.recorded.template for one in opened if one.recorded is not None}
    if len(names) > 1:
        note(
            f"they were trained with the templates {', '.join(sorted(names))}: the first's is kept"
        )
    documents = [read_json_object(folder / TRAINING) for folder in folders]
    settings = {
        "combined": list(said),
        "how": how,
        "lora.rank": lora.rank,
        "lora.alpha": lora.alpha,
    }
    return {
        **files_of_combined(documents, settings),
        TEMPLATE: (folders[0] / TEMPLATE).read_bytes(),
    }
