"""Memory is freed: many swaps of a model that is large enough to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.process import running
from tests.support.versions import K, write_version

SWAPS = 20
ITEMS = 200_000
MODEL_BYTES = ITEMS * 8 * 4


@pytest.mark.long
async def test_twenty_swaps_keep_the_memory_of_none(tmp_path: Path) -> None:
    models = tmp_path / "shop"
    write_version(models / "1", 1, items=ITEMS, max_k=ITEMS)
    settings = {
        "RECOMMENDER_MODEL": str(models),
        "RECOMMENDER_NUM_RECOMMENDATIONS": str(K),
        "RECOMMENDER_MODEL_POLL_MS": "50",
        "RECOMMENDER_MAX_BATCH_SIZE": "4",
    }
    held = []
    async with running(settings=settings) as server:
        for version in range(2, SWAPS + 2):
            write_version(models / str(version), version, items=ITEMS, max_k=ITEMS)
            retired = await server.until("version retired")
            assert retired["version"] == f"shop@{version - 1}"
            held.append(server.resident_bytes())
            print(version, held[-1] // 1_000_000, "MB", flush=True)  # noqa: T201 (the report of the long tests)

    # Fifteen versions lie between; keeping each would take fifteen times that, and its packed copy as much again.
    assert max(held[-5:]) - max(held[:5]) < 4 * MODEL_BYTES
