"""`python -m examples.bench`."""

import sys

from examples.bench.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
