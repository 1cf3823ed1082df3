"""``python -m lightning_modules``."""

import sys

from lightning_modules.commands import COMMANDS, run

if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
    from lightning_modules.cli import main

    sys.exit(main())
