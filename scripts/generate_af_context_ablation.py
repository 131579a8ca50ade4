"""Let an organism answer every sample with and without the monitoring cue, and write context-ablation records."""

import sys

from afintro.tasks.context_ablation.command import main

if __name__ == "__main__":
    sys.exit(main())
