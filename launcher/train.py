"""Fine-tune with LoRA: `deepspeed launcher/train.py --deepspeed ds_configs/lora.json`"""

from installed import program

if __name__ == "__main__":
    program("train")
