"""For launchers: `deepspeed --module llama.commands.evaluate ...`"""

from llama.commands.start import program

if __name__ == "__main__":
    program("evaluate", "llama-lora evaluate")
