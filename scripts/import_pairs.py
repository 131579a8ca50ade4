"""Make context-ablation records of pairs of answers that other people's models gave."""

import sys

from afintro.tasks.context_ablation.imports.command import main

if __name__ == "__main__":
    sys.exit(main())
