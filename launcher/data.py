"""What a run would learn from, before it: `python launcher/data.py ROWS.jsonl --seq_len 1024`"""

from installed import program

if __name__ == "__main__":
    program("data")
