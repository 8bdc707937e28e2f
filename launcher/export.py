"""Merge an adapter: `python launcher/export.py --adapter RUN --format hf --output_dir OUT`"""

from installed import program

if __name__ == "__main__":
    program("export")
