"""Preflight of this machine, or of every host: `python launcher/doctor.py --hostfile hosts`"""

import sys

from llama.doctor.options import DoctorOptions
from llama.options import run_command


def main(options: DoctorOptions) -> int:
    from llama.doctor.command import doctor  # after the options: a typo is answered without torch

    return doctor(options)


if __name__ == "__main__":
    sys.exit(run_command(main, DoctorOptions, "doctor.py", __doc__ or ""))
