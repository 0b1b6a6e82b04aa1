"""`python -m milkweed` is the `milkweed` command."""

import sys

from milkweed.cli import main

if __name__ == "__main__":
    sys.exit(main())
