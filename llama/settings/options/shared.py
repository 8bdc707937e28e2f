"""One YAML file for several commands: what each of them has."""

from __future__ import annotations

from llama.settings.options.declare import declared


def names_of_all_commands() -> frozenset[str]:
    """The dotted name of every option that any command has."""
    return frozenset(option.name for cls in _commands() for option in declared(cls))


def _commands() -> tuple[type, ...]:
    """Looked up when asked for: the classes' own fields are marked with words of this package, so
    that it is being imported before they are there."""
    from llama.settings import (
        chat_command,
        combine_command,
        commands,
        data_command,
        doctor,
        evaluate_command,
        export_command,
        generate_command,
        report_command,
    )

    return (
        commands.TrainOptions,
        data_command.DataOptions,
        export_command.ExportOptions,
        generate_command.GenerateOptions,
        chat_command.ChatOptions,
        combine_command.CombineOptions,
        evaluate_command.EvaluateOptions,
        commands.BenchmarkOptions,
        commands.VerifyOptions,
        commands.PlanOptions,
        commands.AblateOptions,
        report_command.ReportOptions,
        doctor.DoctorOptions,
    )
