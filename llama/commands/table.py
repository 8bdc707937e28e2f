"""The commands of `llama-lora`: a new one is a line here, its options and its function."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """What starts a command. Its parts are named, not imported: a list of all of them, and a typo
    in the options of one, are to be answered without torch."""

    summary: str
    """One line of the list of commands, and the head of its own `--help`."""
    options: str
    """MODULE:CLASS, the dataclass of its options; this module imports no torch."""
    function: str
    """MODULE:FUNCTION that is given the options and returns the exit status."""
    in_ranks: bool = False
    """Whether deepspeed or torchrun may start it as several processes, which then end with their
    launcher. As a module of theirs it is `llama.commands.NAME`."""


_SETTINGS = "llama.settings"

COMMANDS = {
    "train": Command(
        "fine-tune a model on rows",
        f"{_SETTINGS}:TrainOptions",
        "llama.train.loop:train",
        in_ranks=True,
    ),
    "data": Command(
        "look at rows as a run would learn them, before it",
        f"{_SETTINGS}:DataOptions",
        "llama.commands.data.command:show_data",
    ),
    "generate": Command(
        "answer prompts",
        f"{_SETTINGS}:GenerateOptions",
        "llama.commands.generate:generate",
        in_ranks=True,
    ),
    "chat": Command(
        "talk with a model, and with its adapter beside it",
        f"{_SETTINGS}:ChatOptions",
        "llama.commands.chat.command:chat",
    ),
    "evaluate": Command(
        "the loss of a model on rows, or its right answers to questions",
        f"{_SETTINGS}:EvaluateOptions",
        "llama.commands.evaluate.command:evaluate",
        in_ranks=True,
    ),
    "export": Command(
        "write a model or an adapter for other programs",
        f"{_SETTINGS}:ExportOptions",
        "llama.commands.export.command:export",
    ),
    "verify": Command(
        "prove that a topology trains what one process would",
        f"{_SETTINGS}:VerifyOptions",
        "llama.commands.verify.command:verify",
        in_ranks=True,
    ),
    "doctor": Command(
        "look over this machine, or every host, before a run",
        "llama.settings.doctor:DoctorOptions",
        "llama.commands.doctor.command:doctor",
    ),
    "benchmark": Command(
        "time the training step",
        f"{_SETTINGS}:BenchmarkOptions",
        "llama.commands.benchmark.entry:one_or_suite",
        in_ranks=True,
    ),
    "plan": Command(
        "what a run will need, with no GPU at hand",
        f"{_SETTINGS}:PlanOptions",
        "llama.commands.plan.command:plan",
    ),
    "ablate": Command(
        "measure what each technique saves and costs",
        f"{_SETTINGS}:AblateOptions",
        "llama.commands.ablate.command:ablate",
    ),
    "combine": Command(
        "one adapter of several, each times a weight",
        f"{_SETTINGS}:CombineOptions",
        "llama.commands.combine:combine",
    ),
    "report": Command(
        "one page of a run, or of several side by side",
        f"{_SETTINGS}:ReportOptions",
        "llama.commands.report:report",
    ),
}
"""In the order in which they are listed."""
