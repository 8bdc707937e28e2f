"""Time the training step: `python launcher/benchmark.py --model random:llama-7b --seq_len 2048`"""

from llama.launch.parent import follow_launcher
from llama.launch.program import run_program
from llama.settings import BenchmarkOptions
from llama.settings.options import run_command


def main(options: BenchmarkOptions) -> int:
    follow_launcher()
    from llama.commands.benchmark.command import (
        benchmark,  # after the options: a typo is answered without torch
    )

    return benchmark(options)


if __name__ == "__main__":
    run_program(run_command, main, BenchmarkOptions, "benchmark.py", __doc__ or "")
