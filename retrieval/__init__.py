"""Search a folder of images by image: images → encoder → index → matches.

Its names are imported on first use, so that ``--help`` is there at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.encoders.base import Encoder as Encoder
    from retrieval.encoders.classifier import ClassifierEncoder as ClassifierEncoder
    from retrieval.encoders.resnet import ResNetEncoder as ResNetEncoder
    from retrieval.index import ImageIndex as ImageIndex
    from retrieval.index import Match as Match
    from retrieval.plots import plot_matches as plot_matches
    from retrieval.query import Example as Example

_MODULES = {
    "ClassifierEncoder": "encoders.classifier",
    "Encoder": "encoders.base",
    "Example": "query",
    "ResNetEncoder": "encoders.resnet",
    "ImageIndex": "index",
    "Match": "index",
    "plot_matches": "plots",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"retrieval.{_MODULES[name]}"), name)
