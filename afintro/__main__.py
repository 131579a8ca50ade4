"""``python -m afintro``: errors of input in two lines and exit code 2, faults of the program with their traceback."""

import gc
import sys


def main() -> int:
    """Import the command line without looking for garbage, of which imports make none, and run the command line."""
    gc.disable()
    if sys.argv[1:2] == ["explain"]:
        from afintro.explain.command import main as explain

        gc.enable()
        return explain(sys.argv[2:])
    from afintro.cli import main as command_line

    gc.enable()
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
