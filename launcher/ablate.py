"""What each technique saves and costs, measured: `python launcher/ablate.py --output_dir DIR`"""

from installed import program

if __name__ == "__main__":
    program("ablate")
