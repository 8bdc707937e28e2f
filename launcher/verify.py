"""Prove a topology: `deepspeed --num_gpus 4 launcher/verify.py --deepspeed FILE`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.launch.parent import follow_launcher
        from llama.settings import VerifyOptions
        from llama.settings.options import run_command

    def run(options: VerifyOptions) -> int:
        follow_launcher()
        with loading():  # after the options: a typo is answered without torch
            from llama.commands.verify import command
        return command.verify(options)

    return run_command(run, VerifyOptions, "verify.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
