"""``python -m lightning_modules``."""

import sys

from lightning_modules.cli import main

if __name__ == "__main__":
    sys.exit(main())
