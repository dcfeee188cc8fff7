"""A gRPC service that turns a user's history of items into the top-K next items."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recommender.client import Client, Recommendations, Refusal, SyncClient

    __version__: str

__all__ = ["Client", "Recommendations", "Refusal", "SyncClient", "__version__"]


def __getattr__(name: str) -> object:
    """Import the client when it is asked for: gRPC takes a tenth of a second."""
    if name == "__version__":
        return version("recommender")
    if name in __all__:
        return getattr(import_module("recommender.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
