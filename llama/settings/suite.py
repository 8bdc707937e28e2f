"""What `benchmark --suite` takes, and what has an effect on it."""

from __future__ import annotations

from dataclasses import fields

from llama.settings.commands import BenchmarkOptions
from llama.settings.suite_options import SuiteOptions

OF_SUITE = ("only", "pairs", "budget", "output_dir")
SHARED = ("data", "rows", "tokenizer", "template", "json")
"""What a suite takes of what a single benchmark does too."""


def without_suite(options: BenchmarkOptions) -> list[str]:
    """One line for each option that only a suite takes, where there is none. A script's options
    may have one of the same name that is its own."""
    of_suite = {f.name: f for f in fields(SuiteOptions)}
    taken = [f.name for f in fields(options) if f.name in OF_SUITE and f is of_suite[f.name]]
    return [f"--{name}: has no effect without --suite" for name in _given(options, taken)]


def check_suite(options: BenchmarkOptions, rows: list[int]) -> list[str]:
    """Every problem of the options beside `--suite`, whose rows are numbered `rows`."""
    single = [f.name for f in fields(options) if f.name not in (*OF_SUITE, *SHARED, "suite")]
    problems = [
        f"--{name}: has no effect with --suite, whose rows say it"
        for name in _given(options, single)
    ]
    known = [str(row) for row in rows]
    problems += [
        f"--only: expected among {','.join(known)}, found {row!r}"
        for row in options.only
        if row not in known
    ]
    if options.pairs < 1:
        problems.append(f"--pairs: expected an integer of at least 1, found {options.pairs}")
    if not options.budget > 0:
        problems.append(f"--budget: expected a number above 0, found {options.budget:g}")
    if options.tokenizer is not None and not options.tokenizer.exists():
        problems.append(f"--tokenizer: {options.tokenizer} does not exist")
    return problems


def _given(options: BenchmarkOptions, names: list[str]) -> list[str]:
    plain = BenchmarkOptions()
    return [name for name in names if getattr(options, name) != getattr(plain, name)]
