"""What a run would learn from, before it: `python launcher/data.py ROWS.jsonl --seq_len 1024`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.settings import DataOptions
        from llama.settings.options import run_command

    def run(options: DataOptions) -> int:
        with loading():  # after the options: a typo is answered without torch
            from llama.commands.data import command
        return command.show_data(options)

    return run_command(run, DataOptions, "data.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
