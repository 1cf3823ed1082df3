"""What is said of a picture for which the network's answer doesn't count."""

from datamodules.errors import UserError


def refusal(digits: int, familiarity: float) -> str:
    """Why a picture is not one of the classes; empty if it is.

    Args:
        digits: How many it shows.
        familiarity: How like the training images it is, in [0, 1].
    """
    if digits == 0:
        return "nothing on it"
    if digits > 1:
        return f"{digits} digits: `python -m lightning_modules read` reads numbers"
    return "unlike what was trained on" if familiarity < 0.5 else ""


def not_finite() -> UserError:
    """What to raise where a network's outputs are not finite."""
    return UserError("the network's class scores are not finite: its training has diverged, or its file is damaged")
