"""What is searched with on the page."""

from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.errors import UserError
from retrieval.query import Example, Region

MAX_QUERIES = 16  # in one request, and images in one query


def check_count(images: int) -> None:
    """Raise a ``UserError`` where a query has too many images."""
    if images > MAX_QUERIES:
        raise UserError(f"no more than {MAX_QUERIES} images together")


@dataclass(frozen=True)
class Question:
    """An image, or a part of it, together with those that were kept; or several images, each by itself.

    Attributes:
        chosen: The image.
        region: The part of it that counts; None is all.
        corner: (x, y) of the first corner of a part whose second one is still to come.
        kept: Images that are searched with as well, or whose opposite is.
        several: Images that are each searched with by itself.
    """

    chosen: Path | None = None
    region: Region | None = None
    corner: tuple[int, int] | None = None
    kept: tuple[Example, ...] = ()
    several: tuple[Path, ...] = ()

    @property
    def queries(self) -> list[list[Example]]:
        """The images of each query; no queries if nothing was chosen."""
        if self.several:
            return [[Example(path)] for path in self.several[:MAX_QUERIES]]
        together = [*self.kept, *([] if self.chosen is None else [Example(self.chosen, self.region)])]
        return [together] if together else []

    def choose(self, path: Path | None) -> "Question":
        """Another image in place of the chosen one; None for none."""
        return Question(path, kept=self.kept)

    def keep(self, weight: float) -> "Question":
        """Keep the chosen image, so that another one can be chosen.

        Raises:
            UserError: There are too many by now.
        """
        if self.chosen is None:
            return self
        check_count(len(self.kept) + 2)  # with the next one
        return Question(kept=(*self.kept, Example(self.chosen, self.region, weight)))

    def remove(self, place: int) -> "Question":
        """No longer keep an image.

        Raises:
            UserError: It isn't kept, whatever the client says.
        """
        if not isinstance(place, int) or not 0 <= place < len(self.kept):
            raise UserError("That image is no longer shown: search again.")
        return replace(self, kept=self.kept[:place] + self.kept[place + 1 :])

    def click(self, x: int, y: int) -> "Question":
        """Set a corner of the part, or the opposite one; the same place twice takes all of the image."""
        if self.corner is None:
            return replace(self, corner=(x, y))
        left, right = sorted((self.corner[0], x))
        top, bottom = sorted((self.corner[1], y))
        part = (left, top, right, bottom) if left < right and top < bottom else None
        return replace(self, region=part, corner=None)
