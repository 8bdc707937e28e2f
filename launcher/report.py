"""One page of a run, or of several side by side: `python launcher/report.py RUN`"""

from installed import program

if __name__ == "__main__":
    program("report")
