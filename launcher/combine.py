"""One adapter of several, each times a weight: `python launcher/combine.py A:0.7 B:0.3`"""

from installed import program

if __name__ == "__main__":
    program("combine")
