"""The networks that come with the package; ``configs/digits.yaml`` and ``reader.yaml`` say how they were made."""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "digits"
READER = Path(__file__).parent / "reader"
