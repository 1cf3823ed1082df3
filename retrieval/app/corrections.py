"""Pictures that people have put right on the page, in a folder per class, to be learnt from."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from datamodules.errors import UserError, reason
from datamodules.images import find_images
from datamodules.splits import digest
from datamodules.text import printable
from datamodules.writing import atomic_write


class Corrections:
    """A folder of class folders that pictures are added to, as ``CorrectionsDataModule`` reads it.

    Args:
        folder: Made where it isn't there yet.
        class_names: What a picture may be.
        checkpoint: The network that answers; None is the one that comes with the package.

    Attributes:
        command: What adapts the network to the pictures.

    Raises:
        UserError: The folder can't be made, or a class's name can't be a folder's.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], checkpoint: Path | None = None) -> None:
        for name in class_names:
            if not name or name.startswith(".") or Path(name).name != name or "\0" in name:
                raise UserError(f"pictures of the class {printable(name)!r} can't be kept: no folder can be named so")
        self.folder = folder
        self.class_names = list(class_names)
        fit = ["python", "-m", "lightning_modules", "fit", "--config", "configs/adapt.yaml", "--data.root", str(folder)]
        self.command = shlex.join(fit if checkpoint is None else [*fit, "--ckpt_path", str(checkpoint)])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: {reason(error)}; name another folder for corrections") from error

    def __len__(self) -> int:
        return len(find_images(self.folder))

    def keep(self, image: Image.Image, label: str) -> Path:
        """Keep a picture, once, as a PNG named by its pixels; of what it is said to be, the last word counts.

        Args:
            image: As ``Recogniser.read`` gives it: nothing else of a file, such as where it was taken, is kept.
            label: The class that it shows.

        Returns:
            Where it is kept.

        Raises:
            UserError: There is no such class, or the picture can't be written.
        """
        if label not in self.class_names:
            raise UserError("not one of the classes")
        name = f"{digest(repr(image.size).encode() + image.tobytes()).hex()}.png"
        path = self.folder / label / name
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    image.save(file, "PNG")
            for other in self.class_names:
                if other != label:
                    (self.folder / other / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: {reason(error)}") from error
        return path
