"""Time the training step: `python launcher/benchmark.py --model random:llama-7b --seq_len 2048`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.launch.parent import follow_launcher
        from llama.settings import BenchmarkOptions
        from llama.settings.options import run_command

    def run(options: BenchmarkOptions) -> int:
        follow_launcher()
        with loading():  # after the options: a typo is answered without torch
            from llama.commands.benchmark import command
        return command.benchmark(options)

    return run_command(run, BenchmarkOptions, "benchmark.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
