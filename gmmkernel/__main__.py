"""Entry point of `python -m gmmkernel`."""

import sys

from gmmkernel.cli import main

if __name__ == "__main__":
    sys.exit(main())
