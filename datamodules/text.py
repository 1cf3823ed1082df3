"""File names, and tables of them, for people."""


def printable(text: str) -> str:
    """Text on one line, whatever a file name holds: other signs as escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def short_name(name: str, length: int = 24) -> str:
    """A name for a picture, on one line: its end, if it has more than so many signs."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
    return shown if len(shown) <= length else "…" + shown[1 - length :]
