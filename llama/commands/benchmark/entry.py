"""What `benchmark` is asked for: one step, or a table of them."""

from __future__ import annotations

from llama.commands.benchmark.command import benchmark
from llama.commands.benchmark.suite import run_suite
from llama.settings import BenchmarkOptions


def one_or_suite(options: BenchmarkOptions) -> int:
    """Run `launcher/benchmark.py`; returns the exit code."""
    return benchmark(options) if options.suite is None else run_suite(options)
