"""Time the training step: `python launcher/benchmark.py --model random:llama-7b --seq_len 2048`"""

from installed import program

if __name__ == "__main__":
    program("benchmark")
