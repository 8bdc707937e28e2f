"""Preflight of this machine, or of every host: `python launcher/doctor.py --hostfile hosts`"""

from llama.commands.doctor.options import DoctorOptions
from llama.launch.program import run_program
from llama.settings.options import run_command


def main(options: DoctorOptions) -> int:
    from llama.commands.doctor.command import (
        doctor,  # after the options: a typo is answered without torch
    )

    return doctor(options)


if __name__ == "__main__":
    run_program(run_command, main, DoctorOptions, "doctor.py", __doc__ or "")
