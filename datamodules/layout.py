"""Recognise a folder that was split by somebody else: train/, val/ and test/, with the class folders in each."""

from pathlib import Path

from datamodules.errors import UserError
from datamodules.formats import EXTENSIONS
from datamodules.images import has_content

NAMES = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation"},
    "test": {"test", "testing"},
}


def subset_folders(root: Path, strict: bool = False) -> dict[str, Path]:
    """The subset folders of a root that holds nothing else: ``train`` and, where they are there, ``val`` and ``test``.

    A class may be called ``train``, too: a folder is a subset's only if it has folders, and no images, in it.

    Args:
        root: The folder.
        strict: Refuse half of a split, as where the images of ``test/`` lie in no class folders.

    Returns:
        Folders by subset; empty if the root is of another kind, or can't be listed.

    Raises:
        UserError: If ``strict``, ``train/`` has class folders, and another folder named after a subset has none.
    """
    found: dict[str, Path] = {}
    others = []  # which are no subset's
    try:
        folders = sorted(entry for entry in root.iterdir() if has_content(entry.name) and entry.is_dir())
        for folder in folders:
            kind = _subset(folder.name)
            inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
            images = any(entry.suffix.lower() in EXTENSIONS and not entry.is_dir() for entry in inside)
            if kind is None or kind in found or images or not any(entry.is_dir() for entry in inside):
                others.append(folder)
            else:
                found[kind] = folder
    except OSError:
        return {}
    if strict and "train" in found and others and sum(_subset(folder.name) is not None for folder in folders) > 1:
        names = ", ".join(folder.name for folder in others)
        raise UserError(
            f"{root} looks split, but {names} is no subset with class folders in it: move it out, or name those that "
            f"are with --data.root {found['train']}, --data.val_root and --data.test_root"
        )
    return found if "train" in found and not others else {}


def _subset(name: str) -> str | None:
    """The subset that a folder of this name is for."""
    return next((kind for kind, names in NAMES.items() if name.casefold() in names), None)
