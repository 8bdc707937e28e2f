"""Loss on a data file: `python launcher/evaluate.py --model smollm2-135m --data rows.json`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.settings import EvaluateOptions
        from llama.settings.options import run_command

    def run(options: EvaluateOptions) -> int:
        with loading():  # after the options: a typo is answered without torch
            from llama.commands import evaluate
        return evaluate.evaluate(options)

    return run_command(run, EvaluateOptions, "evaluate.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
