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


def subset_folders(root: Path) -> dict[str, Path]:
    """The subset folders of a root that holds nothing else: ``train`` and, where they are there, ``val`` and ``test``.

    A class may be called ``train``, too: a folder is a subset's only if it has folders, and no images, in it.

    Returns:
        Folders by subset; empty if the root is of another kind, or can't be listed.
    """
    found, others = _sort_folders(root)
    return found if "train" in found and not others else {}


def check_layout(root: Path) -> None:
    """Let no half of a split be taken for classes, as where the images of ``test/`` lie in no class folders.

    Raises:
        UserError: The root has class folders in ``train/`` and another folder named after a subset, but isn't split so.
    """
    found, others = _sort_folders(root)
    named = [*found.values(), *(folder for folder in others if _subset(folder.name) is not None)]
    if "train" in found and others and len(named) > 1:
        names = ", ".join(folder.name for folder in others)
        raise UserError(
            f"{root} looks split, but {names} is no subset with class folders in it: move it out, or name those that "
            f"are with --data.root {found['train']}, --data.val_root and --data.test_root"
        )


def _subset(name: str) -> str | None:
    """The subset that a folder of this name is for."""
    return next((kind for kind, names in NAMES.items() if name.casefold() in names), None)


def _sort_folders(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """The folders of a root that are a subset's, by subset, and all others; none where it can't be listed."""
    found: dict[str, Path] = {}
    others = []
    try:
        for folder in sorted(entry for entry in root.iterdir() if has_content(entry.name) and entry.is_dir()):
            kind = _subset(folder.name)
            inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
            images = any(entry.suffix.lower() in EXTENSIONS and not entry.is_dir() for entry in inside)
            if kind is None or kind in found or images or not any(entry.is_dir() for entry in inside):
                others.append(folder)
            else:
                found[kind] = folder
    except OSError:
        return {}, []
    return found, others
