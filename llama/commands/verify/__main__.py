"""For launchers: `deepspeed --module llama.commands.verify ...`"""

from llama.commands.start import program

if __name__ == "__main__":
    program("verify", "llama-lora verify")
