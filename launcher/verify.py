"""Prove a topology: `deepspeed --num_gpus 4 launcher/verify.py --deepspeed FILE`"""

from installed import program

if __name__ == "__main__":
    program("verify")
