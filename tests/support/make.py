"""What make would do."""

from __future__ import annotations

import os
import subprocess

from tests.support.model_files import ROOT


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` with these arguments, its commands printed and not run. A make that runs the tests has
    no part in it: under one it would print where it enters and leaves."""
    return subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")},
        capture_output=True,
        text=True,
        check=False,
    )
