"""Preflight of this machine, or of every host: `python launcher/doctor.py --hostfile hosts`"""

from installed import program

if __name__ == "__main__":
    program("doctor")
