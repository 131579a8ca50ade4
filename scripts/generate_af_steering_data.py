"""Let an organism answer every sample without steering and along directions of its residual stream, and write records."""

import sys

from afintro.tasks.steering.generate_command import main

if __name__ == "__main__":
    sys.exit(main())
