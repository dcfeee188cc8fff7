"""Engines loaded from files as the server loads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from recommender.engine.engine import OnnxEngine
from recommender.models.artifact import open_artifact

Load: TypeAlias = Callable[..., OnnxEngine]
"""The type of the fixture `load`."""


@contextmanager
def engines() -> Iterator[Load]:
    """Load engines on the CPU unless told otherwise; close them at the end."""
    opened: list[OnnxEngine] = []

    def load(path: Path, **arguments: Any) -> OnnxEngine:
        engine = OnnxEngine(open_artifact(path), **{"device": "cpu", **arguments})
        opened.append(engine)
        return engine

    try:
        yield load
    finally:
        for engine in opened:
            engine.close()
