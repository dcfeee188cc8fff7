"""The interface between a server and an edge: listen, report health, drain, stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from recommender.api.service import RecommenderService
from recommender.edges.calls import Calls
from recommender.security.access import Access
from recommender.security.certificates import Certificates


@dataclass(frozen=True, slots=True)
class Connections:
    """Connection counts of an edge: open now, opened so far, and what was cut or reset, by side (client, server)."""

    open: int
    opened: int
    cut: Mapping[str, int]
    resets: Mapping[str, int]


class Listener(Protocol):
    """The edge as a server drives it."""

    def use_certificates(self, certificates: Certificates) -> None:
        """Speak TLS with these from the next connection on; called before `listen` or never."""

    async def listen(self, host: str, port: int) -> int:
        """Take calls, with health NOT_SERVING. Returns the bound port; 0 asks for a free one. Raises StartError."""

    def open(self, service: RecommenderService) -> None:
        """Answer calls with this service; until then they fail with UNAVAILABLE."""

    async def turn_serving(self) -> None:
        """Report SERVING to health checks and watchers."""

    async def turn_unready(self) -> None:
        """Report NOT_SERVING to health checks and watchers, for good."""

    def drain(self) -> None:
        """Read no more from open streams; each ends once everything read is answered."""

    def end_watches(self) -> None:
        """End open health watches: they would hold up `stop`."""

    async def connections(self) -> Connections | None:
        """Return connection counts; None if this edge has none. Raises OSError if they cannot be read now."""

    async def stop(self, grace: float) -> None:
        """Take no more calls; give open ones `grace` seconds to finish."""


MakeListener: TypeAlias = Callable[[Calls, Access | None], Listener]
"""Builds a listener that notes calls in the first argument and checks tokens with the second, if any."""
