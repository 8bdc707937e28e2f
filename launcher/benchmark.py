"""Time the training step: `python launcher/benchmark.py --model random:llama-7b --seq_len 2048`"""

from llama.config import BenchmarkOptions
from llama.options import run_command
from llama.program import run_program
from llama.train.launched import follow_launcher


def main(options: BenchmarkOptions) -> int:
    follow_launcher()
    from llama.benchmark import benchmark  # after the options: a typo is answered without torch

    return benchmark(options)


if __name__ == "__main__":
    run_program(run_command, main, BenchmarkOptions, "benchmark.py", __doc__ or "")
