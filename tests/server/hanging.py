"""The command line with an engine that hangs in a native-like call, for good, on the history [13]."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from recommender import server
from recommender.__main__ import main
from recommender.domain import Query, Ranking
from recommender.engine import OnnxEngine


class Hanging(OnnxEngine):
    """Ignores `terminate` where it hangs, as a native call may."""

    def _rank(self, queries: Sequence[Query]) -> list[Ranking]:
        if any(query.history == (13,) for query in queries):
            threading.Event().wait()
        return super()._rank(queries)


if __name__ == "__main__":
    server.OnnxEngine = Hanging  # type: ignore[attr-defined]
    main()
