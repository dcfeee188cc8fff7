"""Read pages that servers under test serve over HTTP."""

from __future__ import annotations

import urllib.request

TIMEOUT = 30.0


def read(address: str) -> str:
    """GET a page. Raises OSError on failure."""
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:  # noqa: S310 (http, of our own)
        return str(answer.read().decode())
