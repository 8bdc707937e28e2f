"""What a run will need, before any GPU: `python launcher/plan.py --model llama-7b --gpu l4 ...`"""

from installed import program

if __name__ == "__main__":
    program("plan")
