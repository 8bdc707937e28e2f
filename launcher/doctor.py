"""Preflight of this machine, or of every host: `python launcher/doctor.py --hostfile hosts`"""

from llama.doctor.options import DoctorOptions
from llama.options import run_command
from llama.program import run_program


def main(options: DoctorOptions) -> int:
    from llama.doctor.command import doctor  # after the options: a typo is answered without torch

    return doctor(options)


if __name__ == "__main__":
    run_program(run_command, main, DoctorOptions, "doctor.py", __doc__ or "")
