"""Fine-tune with LoRA: `deepspeed launcher/train.py --deepspeed ds_configs/lora.json`"""

from llama.launch.program import loading, run_program


def main() -> int:
    with loading():
        from llama.launch.parent import follow_launcher
        from llama.settings import TrainOptions
        from llama.settings.options import run_command

    def run(options: TrainOptions) -> int:
        follow_launcher()
        with loading():  # after the options: a typo is answered without torch
            from llama.train import loop
        return loop.train(options)

    return run_command(run, TrainOptions, "train.py", __doc__ or "")


if __name__ == "__main__":
    run_program(main)
