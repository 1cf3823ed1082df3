"""``python -m lightning_modules.export``."""

import sys

from lightning_modules.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
