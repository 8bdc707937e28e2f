"""Preflight of this machine, or of every host: `python launcher/doctor.py --hostfile hosts`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.commands.doctor.options import DoctorOptions
        from llama.settings.options import run_command

    def run(options: DoctorOptions) -> int:
        with loading():  # after the options: a typo is answered without torch
            from llama.commands.doctor import command
        return command.doctor(options)

    return run_command(run, DoctorOptions, "doctor.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
