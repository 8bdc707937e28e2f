"""What a run will need, before any GPU: `python launcher/plan.py --model llama-7b --gpu l4 ...`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.settings import PlanOptions
        from llama.settings.options import run_command

    def run(options: PlanOptions) -> int:
        with loading():  # after the options: a typo is answered without torch
            from llama.commands.plan import command
        return command.plan(options)

    return run_command(run, PlanOptions, "plan.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
