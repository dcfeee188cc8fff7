"""Addresses of hosts and ports. Imports next to nothing: `recommender health` runs as a probe every few seconds."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from recommender.errors import StartError

_SCHEMES = ("dns:///", "dns:", "ipv4:", "ipv6:")
"""Schemes of gRPC targets."""
_ALL = ("0.0.0.0", "::")  # noqa: S104 (they are what was asked for)


def address_of(host: str, port: int) -> str:
    """Join host and port; an IPv6 address gets brackets, unless it has them."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def url_of(host: str, port: int, path: str) -> str:
    """Join host, port and path to an HTTP URL."""
    return f"http://{address_of(host, port)}{path}"


def listening_host(host: str) -> str:
    """Return the address to bind for a host: `0.0.0.0` and `::` both mean all addresses, IPv4 and IPv6, as to gRPC.

    That is `::`, or `0.0.0.0` on a machine without IPv6.
    """
    if host not in _ALL:
        return host
    try:
        with socket.socket(socket.AF_INET6) as found:
            found.bind(("::", 0))
    except OSError:
        return "0.0.0.0"  # noqa: S104 (it is what was asked for)
    return "::"


def is_this_machine(target: str) -> bool:
    """Whether a target of gRPC's (`host:port`, `dns:///host:port`) or a URL leads to a loopback address.

    Proxies are for other machines: a call to this one must not go through them.
    """
    scheme = next((scheme for scheme in _SCHEMES if target.startswith(scheme)), "")
    address = target.removeprefix(scheme)
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:  # no address: the bind reports it
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:  # a name
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_unspecified


def cannot_listen(address: str, reason: str = "the port is in use or the address is not this machine's") -> StartError:
    """Build the error for a port that cannot be bound."""
    return StartError(
        f"cannot listen on {address}: {reason}; stop the other server, or set RECOMMENDER_PORT (0 takes a free one) "
        "or RECOMMENDER_HOST"
    )
