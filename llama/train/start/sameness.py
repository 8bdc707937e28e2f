"""Whether every rank was given the same: options, DeepSpeed JSON, model, data, packages.

Ranks on other hosts have other files under the same names, and may have been started by another
command. What differs would show as a hang, or as a model trained on half of one set and half of
another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch.distributed as dist

from llama.adapters.peft_format import peft_hash
from llama.data.prepare import Prepared
from llama.errors import raise_if
from llama.files.weighted import weighted
from llama.launch.packages import COMPUTING, TOKENISING
from llama.parallel.mesh import Mesh
from llama.settings import TrainOptions
from llama.settings.options.marks import BY_CONTENT, marked
from llama.train.start.facts import examples_digest, leaves
from llama.weights.open_model import ModelSource

_APART = ("deepspeed", "override", "json", "data_cache")
"""Options that may differ: the JSON that the first two give is compared itself, and the others
change only what is printed, and where tokens are kept."""
_SHOWN = 4
"""Ranks that a message names for each value."""

Facts = dict[str, str]
Data = Mapping[str, Prepared | None]
"""By option, `data` and `eval_data`."""


def require_sameness(
    options: TrainOptions,
    deepspeed: dict[str, Any],
    source: ModelSource,
    data: Data,
    mesh: Mesh,
) -> None:
    """Raise `UserError` on every rank, naming what differs, with the value of each rank. Every rank
    must call it. One rank of each host hashes the model, if there is more than one host."""
    if mesh.world_size == 1:
        return
    said_here = facts(options, deepspeed, source, data)
    own = (socket.gethostname(), os.environ.get("LOCAL_RANK") == "0", said_here)
    every: list[Any] = [None] * mesh.world_size
    dist.all_gather_object(every, own)
    hosts = [host for host, _, _ in every]
    raise_if(differences([said for _, _, said in every], hosts))
    firsts = [rank for rank, (_, is_first, _) in enumerate(every) if is_first]
    if len(firsts) < 2:
        return
    own_print = source.reader.fingerprint() if own[1] else None
    print_of: list[Any] = [None] * len(every)
    mesh.wait()  # a large model takes its time to read
    dist.all_gather_object(print_of, own_print)
    models = [{"contents of --model": print_of[rank][:12]} for rank in firsts]
    raise_if(differences(models, [hosts[rank] for rank in firsts], firsts))


def facts(
    options: TrainOptions, deepspeed: dict[str, Any], source: ModelSource, data: Data
) -> Facts:
    """What must be the same on every rank, by the name that a message gives it."""
    apart = {*dict(marked(options, BY_CONTENT)), *_APART}
    said = {
        f"--{name}": json.dumps(value, default=str)
        for name, value in leaves("", dataclasses.asdict(options))
        if name not in apart
    }
    for what, section in (
        ("DeepSpeed JSON", deepspeed),
        ("model", dataclasses.asdict(source.config)),
    ):
        for name, value in leaves("", section):
            said[f"{what}: {name}"] = json.dumps(value, default=str)
    weights = [str(of_set.weight) for of_set in weighted(options.data)]
    said["weights of --data"] = ", ".join(weights)
    versions = {name: metadata.version(name) for name in (*COMPUTING, *TOKENISING)}
    versions["python"] = ".".join(platform.python_version_tuple()[:2])
    said |= {f"version of {name}": version for name, version in versions.items()}
    if options.init_adapter is not None:
        said["contents of --init_adapter"] = peft_hash(options.init_adapter)[:12]
    for name, prepared in data.items():
        said[f"contents of --{name}"] = prepared.sha256[:12] if prepared else "none"
        said[f"tokens of --{name}"] = examples_digest(prepared.packed)[:12] if prepared else "none"
    return said


def differences(
    said: Sequence[Mapping[str, str]], hosts: Sequence[str], ranks: Sequence[int] | None = None
) -> list[str]:
    """A line for each name that not all of `said` give the same value. `ranks` are those that said
    it, by default all from 0."""
    ranks = range(len(said)) if ranks is None else ranks
    names = dict.fromkeys(name for of_rank in said for name in of_rank)
    problems: list[str] = []
    for name in names:
        values: dict[str, list[int]] = {}
        for index, of_rank in enumerate(said):
            values.setdefault(of_rank.get(name, "not given"), []).append(index)
        if len(values) == 1 or (problems and name.startswith("tokens of")):
            continue  # what else differs is why the tokens do
        each = "; ".join(f"{v} on {_who(at, ranks, hosts)}" for v, at in values.items())
        problems.append(f"{name} is not the same on every rank: {each}")
    return problems


def _who(indices: Sequence[int], ranks: Sequence[int], hosts: Sequence[str]) -> str:
    named = ", ".join(f"{ranks[i]} ({hosts[i]})" for i in indices[:_SHOWN])
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return f"rank{'s' if len(indices) > 1 else ''} {named}{more}"
