"""For launchers: `deepspeed --module llama.commands.benchmark ...`"""

from llama.commands.start import program

if __name__ == "__main__":
    program("benchmark", "llama-lora benchmark")
