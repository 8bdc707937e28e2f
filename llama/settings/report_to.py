"""Where a run may be watched, by the names that --report_to takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from llama.files.inputs import nearest
from llama.notes import is_first_rank

NONE = "none"
PLACES = {
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
"""Each with the package that it needs; the class of each is in `llama/metrics/sinks/kinds.py`."""


def check_report_to(names: Sequence[str]) -> list[str]:
    """Every problem of them. Packages are looked for on the rank that reports alone."""
    known = (*PLACES, NONE)
    problems = [
        f"--report_to: expected among {','.join(known)}, found {name!r}{nearest(name, known)}"
        for name in names
        if name not in known
    ]
    if len(set(names)) < len(names) or not names:
        problems.append(f"--report_to: expected each of {','.join(known)} once at most")
    if NONE in names and len(names) > 1:
        problems.append("--report_to: none stands alone; leave it out, or the others")
    if is_first_rank():
        problems += [
            f"--report_to {name}: the package {package} is not installed: "
            f"pip install 'llama-lora[{name}]', or pip install {package}"
            for name, package in PLACES.items()
            if name in names and importlib.util.find_spec(package) is None
        ]
    return problems
