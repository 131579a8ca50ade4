"""Compute steering directions of an organism from a contrast of prompts, and how well each layer separates the two."""

import sys

from afintro.tasks.steering.direction_command import main

if __name__ == "__main__":
    sys.exit(main())
