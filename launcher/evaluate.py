"""Loss on a data file: `python launcher/evaluate.py --model smollm2-135m --data rows.json`"""

from llama.launch.program import run_program
from llama.settings import EvaluateOptions
from llama.settings.options import run_command


def main(options: EvaluateOptions) -> int:
    from llama.commands.evaluate import (
        evaluate,  # after the options: a typo is answered without torch
    )

    return evaluate(options)


if __name__ == "__main__":
    run_program(run_command, main, EvaluateOptions, "evaluate.py", __doc__ or "")
