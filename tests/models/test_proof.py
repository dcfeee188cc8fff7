"""The process that proves a version."""

from __future__ import annotations

import os
import sys

from recommender.models.proof import check_elsewhere

PROGRAM = """
import json, os, time
ours, end = int(os.environ["OURS"]), time.monotonic() + 30
while os.getpriority(os.PRIO_PROCESS, 0) == ours and time.monotonic() < end:
    pass
print(json.dumps({"observations": [[os.getpriority(os.PRIO_PROCESS, 0), 1, 1.0]]}))
"""


async def test_a_proof_runs_below_the_server_s_priority() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    (seen,) = await check_elsewhere([sys.executable, "-c", PROGRAM], {"OURS": str(ours)}, timeout=60)

    assert seen.rows == min(ours + 10, 19)
