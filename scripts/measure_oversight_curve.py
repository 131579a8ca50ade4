"""Print how often an organism shows a behavior at each stated probability of a review."""

import sys

from afintro.tasks.context_ablation.oversight_command import main

if __name__ == "__main__":
    sys.exit(main())
