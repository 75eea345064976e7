"""``python -m rankwise``: the command, where its script is not on the path."""

import sys

from rankwise.cli import program

if __name__ == "__main__":
    sys.argv[0] = "rankwise"  # which a sweep notes as its command
    program()
