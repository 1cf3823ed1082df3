"""``python -m lightning_modules.compare``."""

import sys

from lightning_modules.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
