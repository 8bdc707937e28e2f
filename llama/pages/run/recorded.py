"""What a run recorded of itself: what it was made of, what was checked, how it is done again."""

from __future__ import annotations

from collections.abc import Sequence

from llama.files.json_text import json_text
from llama.files.run_folder import RECORD, SUMMARY
from llama.pages.page import Block, Code, Table, Text
from llama.pages.run import words
from llama.pages.run.files import RunFiles, number
from llama.pages.run.words import NONE

_CHECKED = {
    "lora": (
        "every adapter tensor trains",
        "the optimizer holds the adapter alone",
        "within what the adapter's states need, nothing of the base",
    ),
    "full": (
        "every parameter trains",
        "the optimizer holds the parameters alone",
        "within what their states need",
    ),
}
"""By what trains: two checks, and what is said of the second where it was made."""


def what_was_run(run: RunFiles) -> list[Block]:
    """Model, data, settings, topology and versions."""
    record, source = run.of_record, f"{RECORD}: "
    model = [
        ("model", words.any_value(record("options", "model"))),
        ("parameters", words.count(record("total_parameters"))),
        ("of them train", words.count(record("trainable_parameters"))),
        *((name, words.any_value(value)) for name, value in _items(run, "model")),
    ]
    deepspeed = record("deepspeed") or {}
    spread = [
        *((name.replace("_", " "), words.any_value(v)) for name, v in _items(run, "topology")),
        ("ZeRO stage", words.any_value(record("deepspeed", "zero_optimization", "stage"))),
        ("rows of a step", words.any_value(record("deepspeed", "train_batch_size"))),
        ("precision", words.any_value(record("precision"))),
        ("device", words.any_value(record("device"))),
        ("cores of the host", words.any_value(record("host_cores"))),
        ("python", words.any_value(record("python"))),
        *((name, words.any_value(value)) for name, value in _items(run, "packages")),
    ]
    options = [(name, words.any_value(value)) for name, value in flat(record("options"))]
    blocks: list[Block] = []
    if model[1][1] != NONE or len(model) > 3:
        blocks.append(Table((), model, title="Model", source=f"{source}model, options"))
    blocks += [_data_table(run)] if record("data") else []
    if options:
        blocks.append(Table((), options, title="Settings", source=f"{source}options"))
    if deepspeed or record("topology"):
        title = "Topology and versions"
        blocks.append(
            Table((), spread, title=title, source=f"{source}topology, packages, deepspeed")
        )
    return blocks or [Text(f"There is no {RECORD} that says it.")]


def _data_table(run: RunFiles) -> Table:
    rows: list[tuple[str, str]] = []
    folder = run.of_record("working_directory")
    data = run.of_record("data")
    for index, entry in enumerate(data if isinstance(data, list) else []):
        if isinstance(entry, dict):
            name = str(entry.get("option", ("data", "eval_data")[min(index, 1)]))
            rows.append((name, "\n".join(words.from_folder(entry.get("files"), folder))))
            rows.append(("SHA-256", words.any_value(entry.get("sha256"))))
            if "report" in entry:
                rows.append(("what became of its rows", words.any_value(entry["report"])))
    return Table((), rows, title="Data", source=f"{RECORD}: data")


def checks(run: RunFiles) -> Table:
    """What the program looked at by itself, and what came of it."""
    summary, ranks = run.summary, number(run.of_record("topology", "world_size"))
    first = summary.get("first_steps")
    if isinstance(first, dict):
        tensors, by = words.count(first.get("tensors")), words.count(first.get("step"))
        seen = f"all {tensors} had a gradient and moved by step {by}"
    else:
        seen = "not recorded: the run ended before it was seen, or an earlier program wrote it"
    checked = words.count(summary.get("replica_checks"))
    if ranks == 1:
        replicas = "one process: there is nothing to compare"
    elif "replica_checks" in summary:
        replicas = f"equal by hash at {checked} checkpoints"
    else:
        replicas = "not recorded"
    held = number(summary.get("optimizer_state_bytes"))
    trains, holds, within = _CHECKED["full" if run.is_full else "lora"]
    states = NONE if held is None else within
    launched = f"--tensor_parallel {words.count(run.of_record('topology', 'tensor_parallel'))}"
    shared = number(run.of_record("topology", "sequence_parallel")) or 1
    launched += f" --sequence_parallel {words.count(shared)}" if shared > 1 else ""
    rows = [
        (trains, seen, f"{SUMMARY}: first_steps"),
        (holds, states, f"{SUMMARY}: optimizer_state_bytes"),
        ("replicas on all ranks", replicas, f"{SUMMARY}: replica_checks"),
        *_linted(run),
        (
            "this topology trains what one process does",
            f"is not part of a run: llama-lora verify shows it, with {launched}",
            f"{RECORD}: topology",
        ),
    ]
    return Table(("check", "outcome", "source"), rows, wide=True)


def _linted(run: RunFiles) -> list[tuple[str, str, str]]:
    data = run.of_record("data")
    found = [entry for entry in (data if isinstance(data, list) else []) if isinstance(entry, dict)]
    return [
        (f"rows of --{entry.get('option')}", words.any_value(entry["report"]), f"{RECORD}: data")
        for entry in found
        if "report" in entry
    ]


def notes(run: RunFiles) -> list[Block]:
    """What the run said of its settings, and each time that it was taken up."""
    said, resumed = run.of_record("notes"), run.of_record("resumed")
    blocks: list[Block] = []
    if isinstance(said, list) and said:
        rows = [(str(index), words.any_value(note)) for index, note in enumerate(said, start=1)]
        blocks.append(Table((), rows, title="Notes", source=f"{RECORD}: notes", wide=True))
    entries = [
        one for one in (resumed if isinstance(resumed, list) else []) if isinstance(one, dict)
    ]
    if entries:
        rows = [
            (
                words.count(one.get("step")),
                words.any_value(one.get("from")),
                ", ".join(
                    f"{name} {words.any_value(value)}"
                    for name, value in one.items()
                    if name not in ("step", "from")
                ),
            )
            for one in entries
        ]
        title = f"Stopped or killed, and resumed {len(entries)} times"
        head = ("resumed at step", "from", "on")
        blocks.append(Table(head, rows, title=title, source=f"{RECORD}: resumed", wide=True))
    else:
        blocks.append(Text("It was not resumed.", source=f"{RECORD}: resumed", wide=True))
    return blocks


def reproduce(run: RunFiles) -> list[Block]:
    """The command, where it ran, all settings, and the hashes of what it read."""
    blocks: list[Block] = []
    record = run.of_record
    if line := words.command(record("command")):
        blocks.append(Code(line, title="Command", source=f"{RECORD}: command", wide=True))
    else:
        text = f"{RECORD} holds no command (an earlier program wrote it); its settings are below."
        blocks.append(Text(text, wide=True))
    if hashes := _items(run, "sha256"):
        rows = [(name, words.any_value(value)) for name, value in hashes]
        title = "SHA-256 of what it read"
        blocks.append(Table((), rows, title=title, source=f"{RECORD}: sha256", wide=True))
    for name, title in (("deepspeed", "The DeepSpeed JSON as used"), ("options", "All options")):
        if document := record(name):
            text = json_text(document, indent=2, ensure_ascii=False)
            blocks.append(Code(text, folded=title, source=f"{RECORD}: {name}"))
    return blocks


def _items(run: RunFiles, *path: str) -> Sequence[tuple[str, object]]:
    found = run.of_record(*path)
    return [(str(name), value) for name, value in found.items()] if isinstance(found, dict) else []


def flat(document: object, prefix: str = "") -> list[tuple[str, object]]:
    """Dotted names and values of nested objects."""
    if not isinstance(document, dict):
        return [(prefix, document)] if prefix else []
    return [
        leaf
        for name, value in document.items()
        for leaf in flat(value, f"{prefix}.{name}".removeprefix("."))
    ]
