"""What ends a command: a user's mistake, each problem as one line, or a run that went wrong."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used. `problems` holds one line each: file, field and row, what was
    expected, and what to do. The launchers print each as `error: <line>` and exit with 2."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class TrainingError(RuntimeError):
    """The run itself went wrong, and says how."""


def raise_if(problems: list[str]) -> None:
    """Raise one `UserError` holding all of `problems`, if there are any."""
    if problems:
        raise UserError(problems)
