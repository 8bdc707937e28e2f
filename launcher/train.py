"""Fine-tune with LoRA: `deepspeed launcher/train.py --deepspeed ds_configs/lora.json`"""

import sys

from llama.config import TrainOptions
from llama.options import run_command


def main(options: TrainOptions) -> int:
    from llama.train.loop import train  # after the options: a typo is answered without torch

    return train(options)


if __name__ == "__main__":
    sys.exit(run_command(main, TrainOptions, "train.py", __doc__ or ""))
