"""Prove a topology: `deepspeed --num_gpus 4 launcher/verify.py --deepspeed FILE`"""

from llama.launch.parent import follow_launcher
from llama.launch.program import run_program
from llama.settings import VerifyOptions
from llama.settings.options import run_command


def main(options: VerifyOptions) -> int:
    follow_launcher()
    from llama.commands.verify.command import (
        verify,  # after the options: a typo is answered without torch
    )

    return verify(options)


if __name__ == "__main__":
    run_program(run_command, main, VerifyOptions, "verify.py", __doc__ or "")
