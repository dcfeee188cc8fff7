"""The command line with a load that hangs as a native call may, for good: no thread of Python's can end it."""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import structlog

from recommender.__main__ import main
from recommender.engine import sessions
from recommender.models import loader
from recommender.server import embedded, envoy, supervisor

log = structlog.get_logger(__name__)


def hang(path: Path, *_: Any, **__: Any) -> NoReturn:
    log.info("hanging", path=str(path))
    threading.Event().wait()
    raise AssertionError("nobody sets it")


sessions.open_sessions = loader.open_model = hang  # type: ignore[assignment]
app = embedded.app

if __name__ == "__main__":
    # Envoy's process loads this module instead of recommender.server.embedded.
    envoy.EnvoyServer = functools.partial(envoy.EnvoyServer, application="tests.support.loading:app")  # type: ignore[misc, assignment]
    command = (sys.executable, "-m", "tests.support.loading", "worker")
    supervisor.Supervisor = functools.partial(supervisor.Supervisor, command=command)  # type: ignore[misc, assignment]
    main()
