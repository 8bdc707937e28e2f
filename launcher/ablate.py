"""What each technique saves and costs, measured: `python launcher/ablate.py --output_dir DIR`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.settings import AblateOptions
        from llama.settings.options import run_command

    def run(options: AblateOptions) -> int:
        with loading():  # after the options: a typo is answered without torch
            from llama.commands.ablate import command
        return command.ablate(options)

    return run_command(run, AblateOptions, "ablate.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
