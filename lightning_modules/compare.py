"""``python -m lightning_modules.compare``."""

import sys

from lightning_modules.commands import run

if __name__ == "__main__":
    sys.exit(run("compare"))
