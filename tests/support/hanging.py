"""The command line with an engine that hangs as a native call may, for good, on the history [13], fails on [14], and
ends its thread on [15]."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

from recommender.cli.main import main
from recommender.domain import Query, Ranking
from recommender.engine import engine
from recommender.server import embedded, envoy


class Hanging(engine.OnnxEngine):
    """Ignores `terminate` where it hangs, as a native call may."""

    def _rank(
        self,
        queries: Sequence[Query],
        begun: Callable[[], None],
        *,
        general: bool = False,
        padding: int | None = None,
    ) -> list[Ranking]:
        if any(query.history == (13,) for query in queries):
            threading.Event().wait()
        if any(query.history == (14,) for query in queries):
            raise RuntimeError("the engine has a bad day")
        if any(query.history == (15,) for query in queries):
            raise SystemExit("this thread ends")
        return super()._rank(queries, begun, general=general, padding=padding)


engine.OnnxEngine = Hanging  # type: ignore[misc]
app = embedded.app

if __name__ == "__main__":
    # Envoy's process loads this module instead of recommender.server.embedded.
    envoy.EnvoyServer = functools.partial(envoy.EnvoyServer, application="tests.support.hanging:app")  # type: ignore[misc, assignment]
    main()
