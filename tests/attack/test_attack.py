"""A short `just attack`: attacks without a token affect no caller, and do not delay a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from recommender.settings.network import Edge
from tests.attack.attacks import ATTACKS
from tests.attack.victim import victim

SMALL = 0.02
MOST_MB = 128


@pytest.mark.both_edges
async def test_a_server_holds_against_every_attack_and_stops_while_one_goes_on(edge: Edge, tmp_path: Path) -> None:
    async with victim(edge, tmp_path, size=SMALL, most_mb=MOST_MB) as server:
        reports = [await server.suffer(name, attack) for name, attack in ATTACKS.items()]
        reports.append(await server.stop())

    assert {report.attack: report.faults for report in reports if report.faults} == {}
