"""From a model that another library trained to a model file that the server runs; needs the `model` extra."""

from importlib import import_module
from typing import TYPE_CHECKING

from recommender.export.errors import ExportError
from recommender.importers.elsewhere import LIBRARIES, hand_over, script_of
from recommender.importers.options import ImportOptions

if TYPE_CHECKING:
    from recommender.importers.build import import_model

__all__ = ["LIBRARIES", "ExportError", "ImportOptions", "hand_over", "import_model", "script_of"]


def __getattr__(name: str) -> object:
    """Import torch when something is imported. Raises ModuleNotFoundError without it."""
    if name in __all__:
        return getattr(import_module("recommender.importers.build"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
