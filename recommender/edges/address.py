"""Addresses to listen on. Imports next to nothing: `recommender health` runs as a probe every few seconds."""

from __future__ import annotations

from recommender.errors import StartError


def address_of(host: str, port: int) -> str:
    """Join host and port; IPv6 addresses get brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cannot_listen(address: str, reason: str = "the port is in use or the address is not this machine's") -> StartError:
    """Build the error for a port that cannot be bound."""
    return StartError(
        f"cannot listen on {address}: {reason}; stop the other server, or set RECOMMENDER_PORT (0 takes a free one) "
        "or RECOMMENDER_HOST"
    )
