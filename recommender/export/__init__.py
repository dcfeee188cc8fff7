"""From a torch network to a model file that the server runs; needs the `model` extra, and nothing else imports it."""

from importlib import import_module
from typing import TYPE_CHECKING

from recommender.export.errors import ExportError
from recommender.export.options import ExportOptions

if TYPE_CHECKING:
    from recommender.export.exporter import Progress, export_model

__all__ = ["ExportError", "ExportOptions", "Progress", "export_model"]


def __getattr__(name: str) -> object:
    """Import torch when something is exported. Raises ModuleNotFoundError without it."""
    if name in __all__:
        return getattr(import_module("recommender.export.exporter"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
