"""``python -m afintro``: errors of input in two lines and exit code 2, faults of the program with their traceback."""

import sys

from afintro.cli import main

if __name__ == "__main__":
    sys.exit(main())
