"""Recognise a folder that was split by somebody else: train/, val/ and test/, with the class folders in each."""

from pathlib import Path

from datamodules.formats import EXTENSIONS

NAMES = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation"},
    "test": {"test", "testing"},
}


def subset_folders(root: Path) -> dict[str, Path]:
    """The subset folders of a root that holds nothing else: ``train`` and, where they are there, ``val`` and ``test``.

    A class may be called ``train``, too: a folder is a subset's only if it has folders, and no images, in it.

    Returns:
        Folders by subset; empty if the root is of another kind, or can't be listed.
    """
    found: dict[str, Path] = {}
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        for folder in folders:
            kinds = [kind for kind, names in NAMES.items() if folder.name.casefold() in names]
            inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
            images = any(entry.suffix.lower() in EXTENSIONS and not entry.is_dir() for entry in inside)
            if not kinds or kinds[0] in found or images or not any(entry.is_dir() for entry in inside):
                return {}
            found[kinds[0]] = folder
    except OSError:
        return {}
    return found if "train" in found else {}
