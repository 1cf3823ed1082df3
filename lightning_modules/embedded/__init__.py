"""The network that comes with the package: ``configs/digits.yaml`` says how it was made."""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "digits"
