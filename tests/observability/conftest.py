"""What tests of telemetry share."""

from __future__ import annotations

import pytest

from tests.support.observed import Observed, observing


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Observed:
    """A server in this process that sends to a collector; what it holds back is sent when it stops."""
    return observing(monkeypatch)
