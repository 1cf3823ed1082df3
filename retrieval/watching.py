"""Keep an index up to date while its folder changes."""

from collections.abc import Callable
from pathlib import Path
from threading import Event

from datamodules.errors import UserError
from retrieval.index import ImageIndex
from retrieval.update import Update

SETTLED = 500  # milliseconds without a change after which changes are looked at
LONGEST = 5_000  # milliseconds after which they are looked at all the same
WAKE = 1_000  # milliseconds after which a wait for changes ends without any


def check_watching() -> None:
    """Raise a ``UserError`` where watchfiles isn't installed."""
    try:
        import watchfiles  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError('--watch needs watchfiles: pip install ".[watch]" in the clone') from error


def watch(
    index: ImageIndex,
    told: Callable[[Update], object],
    failed: Callable[[UserError], object],
    stop: Event | None = None,
) -> None:
    """Update an index whenever images of its folder have changed, until ``stop`` is set.

    Args:
        index: What is brought up to date, once at the start as well: what changed since its last update is not missed.
        told: Called with what each update has done, but for those that had nothing to do.
        failed: Called with why an update couldn't be made; the next change tries it again.
        stop: None goes on until Ctrl-C.
    """
    from watchfiles import watch as changes_in

    folder = index.folder.resolve()
    own = Path(str(index.location)).resolve()  # the address of a collection is the name of no file in the folder

    def is_image(change: object, path: str) -> bool:
        """Whether a change is one of the images': the index may lie in the folder as well, hidden or not."""
        changed = Path(path)
        if changed.parent == own.parent and changed.name.startswith(own.name):
            return False
        return not any(part.startswith(".") for part in changed.relative_to(folder).parts)

    waits = changes_in(
        folder,
        watch_filter=is_image,
        step=SETTLED,
        debounce=LONGEST,
        stop_event=stop,
        rust_timeout=WAKE,
        yield_on_timeout=True,
    )
    for number, changes in enumerate(waits):
        if number == 0 or changes:  # at the start, all that has changed while nothing was watched
            try:
                update = index.update(progress=True)
            except UserError as error:
                failed(error)
                continue
            if update.encoded or update.known or update.removed or update.errors:
                told(update)
