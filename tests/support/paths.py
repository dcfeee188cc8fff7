"""Where the project and its models are."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights"


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="model-cache-")


def model_cache() -> Path:
    """The model cache of servers in this process, instead of the user's."""
    return Path(_temporary().name)
