"""Answer a prompt: `python launcher/generate.py --model smollm2-135m --prompt "Name a fruit."`"""

from llama.launch.program import run_program
from llama.settings import GenerateOptions
from llama.settings.options import run_command


def main(options: GenerateOptions) -> int:
    from llama.commands.generate import (
        generate,  # after the options: a typo is answered without torch
    )

    return generate(options)


if __name__ == "__main__":
    run_program(run_command, main, GenerateOptions, "generate.py", __doc__ or "")
