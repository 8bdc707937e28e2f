"""Answer a prompt: `python launcher/generate.py --model smollm2-135m --prompt "Name a fruit."`"""

from installed import program

if __name__ == "__main__":
    program("generate")
