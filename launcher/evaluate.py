"""Loss on a data file: `python launcher/evaluate.py --model smollm2-135m --data rows.json`"""

from llama.config import EvaluateOptions
from llama.options import run_command
from llama.program import run_program


def main(options: EvaluateOptions) -> int:
    from llama.evaluate import evaluate  # after the options: a typo is answered without torch

    return evaluate(options)


if __name__ == "__main__":
    run_program(run_command, main, EvaluateOptions, "evaluate.py", __doc__ or "")
