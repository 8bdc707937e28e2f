"""`python -m llama COMMAND ...`: the same as `llama-lora COMMAND ...`."""

from llama.commands.start import main

if __name__ == "__main__":
    main()
