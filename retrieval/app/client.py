"""What a client sends and what it is told, on every tab."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradio.events import api
from gradio.utils import get_upload_folder

from datamodules.errors import UserError
from retrieval.index import ImageIndex

AT_ONCE = 16  # requests that are decoded and drawn at the same time: bounds the memory
MAX_CHARACTERS = 400  # of a message: no reader wants more

# Files come as Gradio has checked and stored them, not as it would decode them: that is ours to do.
LISTEN: dict[str, Any] = {"preprocess": False, "concurrency_limit": AT_ONCE, "api_visibility": "private"}

Upload = dict[str, Any] | None  # Gradio's FileData


def publish(name: str, description: str, answer: Callable[..., Any]) -> None:
    """Let programs call a function, whose arguments and their types are the API's."""
    api(answer, api_name=name, api_description=description, queue=False)  # one request, one answer


def uploads() -> Path:
    """Where Gradio keeps files of clients, and for them; messages don't name it."""
    folder = Path(get_upload_folder()).resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may have been tidied away
    return folder


def stored(upload: Upload) -> Path:
    """Where Gradio has stored an upload; a client could name any other file.

    Raises:
        UserError: There is none.
    """
    path = upload.get("path") if isinstance(upload, dict) else None
    if not isinstance(path, str) or not path:
        raise UserError("an image is required")
    place = Path(path).resolve()
    if not place.is_relative_to(uploads()):
        raise UserError("not an uploaded image")
    return place


def sentence(error: UserError, index: ImageIndex | None = None) -> str:
    """An error without the folders of this machine: the one that uploads are stored in, and others."""
    text = re.sub(rf"{re.escape(str(uploads()))}/[^/]+/", "", str(error))  # whose names may have blanks
    if index is not None:
        for folder in (index.folder, Path(str(index.location)).parent):
            text = text.replace(f"{folder}{os.sep}", "")
            if folder.is_absolute() and folder.name:
                text = text.replace(str(folder), folder.name)
    text = sendable(text)
    # Of what else is named from the root, or by an address, the name stays; a path in the folder stays as it is.
    return re.sub(r"(?<![\w.-])(?:\w+:/)?/\S*/([^/\s]+: )", r"\1", text)[:MAX_CHARACTERS]


def sendable(name: str) -> str:
    """The name of a file or folder, which need not be UTF-8, as JSON can hold it."""
    return name.encode(errors="replace").decode()
