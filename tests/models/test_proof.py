"""The process that proves a version."""

from __future__ import annotations

import os
import sys

import pytest

from recommender.errors import ModelError
from recommender.models.proof import check_elsewhere

PROGRAM = """
import os, time
from recommender.models.proof import Proof
ours, end = int(os.environ["OURS"]), time.monotonic() + 30
while os.getpriority(os.PRIO_PROCESS, 0) == ours and time.monotonic() < end:
    pass
proof = Proof(
    model="m@1", sha256="", items=None, provider="", golden=0, vocabulary=0, fallback=0, event_loop="",
    observations=((os.getpriority(os.PRIO_PROCESS, 0), 1, 1.0),),
)
print(proof.to_json())
"""


async def test_a_proof_runs_below_the_server_s_priority() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    (seen,) = await check_elsewhere([sys.executable, "-c", PROGRAM], {"OURS": str(ours)}, timeout=60)

    assert seen.rows == min(ours + 10, 19)


@pytest.mark.parametrize("printed", ["", "{}", '{"observations": [[1, 1, 1.0]]}', "no JSON at all"])
async def test_output_that_is_not_a_proof_refuses_the_version(printed: str) -> None:
    with pytest.raises(ModelError, match="its proof printed no valid result"):
        await check_elsewhere([sys.executable, "-c", f"print({printed!r})"], {}, timeout=60)
