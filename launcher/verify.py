"""Prove a topology: `deepspeed --num_gpus 4 launcher/verify.py --deepspeed FILE`"""

from llama.config import VerifyOptions
from llama.options import run_command
from llama.program import run_program
from llama.train.launched import follow_launcher


def main(options: VerifyOptions) -> int:
    follow_launcher()
    from llama.verify import verify  # after the options: a typo is answered without torch

    return verify(options)


if __name__ == "__main__":
    run_program(run_command, main, VerifyOptions, "verify.py", __doc__ or "")
