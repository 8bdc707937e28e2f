"""Loss on a data file: `python launcher/evaluate.py --model smollm2-135m --data rows.json`"""

from installed import program

if __name__ == "__main__":
    program("evaluate")
