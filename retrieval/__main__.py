"""``python -m retrieval index | query | evaluate | audit | export | import | serve``."""

import sys

from retrieval.cli import main

if __name__ == "__main__":
    sys.exit(main())
