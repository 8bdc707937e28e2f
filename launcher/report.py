"""One page of a run, or of several side by side: `python launcher/report.py RUN`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.settings import ReportOptions
        from llama.settings.options import run_command

    def run(options: ReportOptions) -> int:
        with loading():  # after the options: a typo is answered without matplotlib
            from llama.commands import report
        return report.report(options)

    return run_command(run, ReportOptions, "report.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
