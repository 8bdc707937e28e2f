"""Fine-tune with LoRA: `deepspeed launcher/train.py --deepspeed ds_configs/lora.json`"""

from llama.launch.parent import follow_launcher
from llama.launch.program import run_program
from llama.settings import TrainOptions
from llama.settings.options import run_command


def main(options: TrainOptions) -> int:
    follow_launcher()
    from llama.train.loop import train  # after the options: a typo is answered without torch

    return train(options)


if __name__ == "__main__":
    run_program(run_command, main, TrainOptions, "train.py", __doc__ or "")
