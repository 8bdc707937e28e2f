"""Answer a prompt: `python launcher/generate.py --model smollm2-135m --prompt "Name a fruit."`"""

from llama.config import GenerateOptions
from llama.options import run_command
from llama.program import run_program


def main(options: GenerateOptions) -> int:
    from llama.generate import generate  # after the options: a typo is answered without torch

    return generate(options)


if __name__ == "__main__":
    run_program(run_command, main, GenerateOptions, "generate.py", __doc__ or "")
