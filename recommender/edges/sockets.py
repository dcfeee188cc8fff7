"""Sockets of a port's connections, found among this process's file descriptors.

gRPC and Envoy name the peer of a call and have no way to close its connection. Where the system lists no
descriptors, nothing is found and nothing closed.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

Peer: TypeAlias = tuple[str, int]
"""IP address, an IPv4 one never written as IPv6, and port."""

_DESCRIPTORS = Path("/dev/fd")


def peer_of(host: str, port: int) -> Peer:
    """Name a peer, whichever way its address is written. Raises ValueError if it is no IP address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), port


def peer_of_uri(uri: str) -> Peer:
    """Name the peer that gRPC writes as `ipv4:127.0.0.1:50051` or `ipv6:%5B::1%5D:50051`. Raises ValueError."""
    host, _, port = unquote(uri).partition(":")[2].rpartition(":")
    return peer_of(host.strip("[]"), int(port))


def cut(port: int, peers: Collection[Peer]) -> None:
    """Close the connections of these peers with this port; what is on the way is lost."""
    for peer, connection in _connections(port):
        if peer in peers:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def send_no_more(port: int) -> None:
    """End the sending side of every connection with this port; peers still get all that was sent before."""
    for _, connection in _connections(port):
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)


def _connections(port: int) -> Iterator[tuple[Peer, socket.socket]]:
    """Duplicate the socket of each connection with this port, for as long as it is looked at."""
    try:
        descriptors = list(_DESCRIPTORS.iterdir())
    except OSError:
        return
    for path in descriptors:
        with suppress(OSError, ValueError):  # closed meanwhile, no socket of a connection, or none of IP
            descriptor = int(path.name)
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.getsockname()[1:2] == (port,):
                    yield peer_of(*connection.getpeername()[:2]), connection
