"""The process that proves a version."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from pathlib import Path

import pytest

from recommender.errors import ModelError
from recommender.models.proof import check_elsewhere
from tests.support.models import endless
from tests.support.process import PATIENCE

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


PARENT = """
import asyncio, sys
from recommender.models.proof import check_elsewhere
import os
command = [sys.executable, "-m", "recommender", "models", "verify", sys.argv[1], "--json", "--parent", str(os.getpid())]
asyncio.run(check_elsewhere(command, {"RECOMMENDER_NUM_RECOMMENDATIONS": "1"}, timeout=600))
"""


async def test_a_proof_that_never_ends_ends_with_its_server(tmp_path: Path) -> None:
    model = endless(tmp_path / "1_model.onnx")
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(model))
    async with asyncio.timeout(PATIENCE):
        while not (proofs := children(parent.pid)) or not maps(proofs[0], "onnxruntime"):  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.05)
    proof = os.pidfd_open(proofs[0])
    parent.kill()
    await parent.wait()

    assert await asyncio.to_thread(select.select, [proof], [], [], PATIENCE) != ([], [], [])
    os.close(proof)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def maps(pid: int, name: str) -> bool:
    """Whether a process has such a library in its memory."""
    return name in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
