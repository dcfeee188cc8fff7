"""The edges that tests of the wire and of a server's life run against."""

from __future__ import annotations

import pytest

from recommender.domain import Edge


@pytest.fixture(scope="session", params=["grpc", "envoy"])
def edge(request: pytest.FixtureRequest) -> Edge:
    """Each edge in its turn."""
    edge: Edge = request.param
    return edge
