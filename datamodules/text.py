"""File names, and tables of them, for people."""

from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    """Text on one line, whatever a file name holds: other signs as escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def short_name(name: str, length: int = 24) -> str:
    """A name for a picture, on one line: its end, if it has more than so many signs."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
    return shown if len(shown) <= length else "…" + shown[1 - length :]


def as_table(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells, such as a header and what it names, as columns below each other.

    A float is shown with four decimals, None as an empty cell; any other formatting is the caller's.
    """
    lines = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else printable(str(value))


def as_text(labels: Iterable[int], class_names: Sequence[str]) -> str:
    """What labels spell, with a space between signs of more than one character."""
    between = "" if all(len(name) == 1 for name in class_names) else " "
    return between.join(class_names[label] for label in labels)
