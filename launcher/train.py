"""Fine-tune with LoRA: `deepspeed launcher/train.py --deepspeed ds_configs/lora.json`"""

from llama.config import TrainOptions
from llama.options import run_command
from llama.program import run_program
from llama.train.launched import follow_launcher


def main(options: TrainOptions) -> int:
    follow_launcher()
    from llama.train.loop import train  # after the options: a typo is answered without torch

    return train(options)


if __name__ == "__main__":
    run_program(run_command, main, TrainOptions, "train.py", __doc__ or "")
