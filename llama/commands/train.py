"""For launchers: `deepspeed --module llama.commands.train ...`, which `llama/train` then runs."""

from llama.commands.start import program

if __name__ == "__main__":
    program("train", "llama-lora train")
