"""The interface between a server and the transport of an edge: listen, count connections, stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:  # a supervisor has a health port, and neither a model nor certificates
    from recommender.edges.methods import Methods
    from recommender.security.certificates import Certificates


@dataclass(frozen=True, slots=True)
class Connections:
    """Connection counts of an edge: open now, opened so far, and what was cut or reset, by side (client, server)."""

    open: int
    opened: int
    cut: Mapping[str, int]
    resets: Mapping[str, int]


class Listener(Protocol):
    """Takes the calls of `Methods` on a port."""

    def use_certificates(self, certificates: Certificates) -> None:
        """Use TLS with these from the next connection on. The first call comes before `listen`."""

    async def listen(self, host: str, port: int) -> int:
        """Take calls. Returns the bound port; 0 asks for a free one. Raises StartError."""

    async def connections(self) -> Connections | None:
        """Return connection counts; None if this edge has none. Raises OSError if they cannot be read now."""

    async def stop(self, grace: float) -> None:
        """Take no more calls; give open ones `grace` seconds to finish."""


MakeListener: TypeAlias = "Callable[[Methods], Listener]"
