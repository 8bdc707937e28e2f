"""Answer a prompt: `python launcher/generate.py --model smollm2-135m --prompt "Name a fruit."`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.settings import GenerateOptions
        from llama.settings.options import run_command

    def run(options: GenerateOptions) -> int:
        with loading():  # after the options: a typo is answered without torch
            from llama.commands import generate
        return generate.generate(options)

    return run_command(run, GenerateOptions, "generate.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
