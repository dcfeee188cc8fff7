"""Engines loaded from files as the server loads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from recommender.engine.engine import OnnxEngine
from recommender.engine.provider import SessionPlan
from recommender.engine.sessions import open_sessions
from recommender.models.artifact import open_artifact
from recommender.models.description import describe
from recommender.settings.engine import Device

_PLAN = SessionPlan(threads=0)

Load: TypeAlias = Callable[..., OnnxEngine]
"""The type of the fixture `load`."""


@contextmanager
def engines() -> Iterator[Load]:
    """Load engines, by default on the CPU; close them at the end."""
    opened: list[OnnxEngine] = []

    def load(path: Path, *, device: Device = "cpu", plan: SessionPlan = _PLAN, **more: Any) -> OnnxEngine:
        engine = OnnxEngine(open_sessions(path, partial(describe, open_artifact(path)), plan, device=device, **more))
        opened.append(engine)
        return engine

    try:
        yield load
    finally:
        for engine in opened:
            engine.close()
