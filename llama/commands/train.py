"""For launchers: `deepspeed --module llama.commands.train ...`. What it does is in `llama/train`."""

from llama.commands.start import program

if __name__ == "__main__":
    program("train", "llama-lora train")
