"""``python -m lightning_modules.sweep``."""

import sys

from lightning_modules.commands import run

if __name__ == "__main__":
    sys.exit(run("sweep"))
