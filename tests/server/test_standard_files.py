"""Standard input, output and error of a server: closed at the start, closed later, or open and not read."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recommender.server.health_port import READINESS
from recommender.server.process import ExitCode
from tests.support.balanced import free_ports
from tests.support.paths import ROOT
from tests.support.process import PATIENCE

F_SETPIPE_SZ = 1031
PAGE = 4096


@asynccontextmanager
async def served(
    *words: str, stderr: int | None, ready: bool = True, **settings: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`recommender serve` with this descriptor as standard error, or as these words run it."""
    (port,) = free_ports(1)
    environment = {**os.environ, "RECOMMENDER_PORT": "0", "RECOMMENDER_HEALTH_PORT": str(port), **settings}
    environment |= {"RECOMMENDER_WEIGHTS_DIR": str(ROOT / "weights"), "PYTHON": sys.executable}
    process = await asyncio.create_subprocess_exec(
        *(words or (sys.executable, "-m", "recommender", "serve")),
        env=environment, stdout=subprocess.DEVNULL, stderr=stderr,
    )  # fmt: skip
    try:
        if ready:
            await until_serving(f"127.0.0.1:{port}")
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def opened(pid: int, number: int) -> str:
    """What a descriptor of a process is open on."""
    return str(Path(f"/proc/{pid}/fd/{number}").readlink())


async def until_serving(address: str) -> None:
    """Wait until a health port says that the server is ready."""
    async with grpc.aio.insecure_channel(address, [("grpc.max_reconnect_backoff_ms", 200)]) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(service=READINESS), wait_for_ready=True, timeout=PATIENCE
        )
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass


async def exit_code(process: asyncio.subprocess.Process) -> int:
    process.send_signal(signal.SIGTERM)
    return await asyncio.wait_for(process.wait(), PATIENCE)


async def test_descriptors_that_are_closed_at_the_start_do_no_harm() -> None:
    closed = ("sh", "-c", 'exec "$PYTHON" -m recommender serve 0<&- 1>&- 2>&-')
    async with served(*closed, stderr=subprocess.DEVNULL) as process:
        names = {opened(process.pid, number) for number in range(3)}
        code = await exit_code(process)

    assert names == {os.devnull}
    assert code == ExitCode.DRAINED


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_log_that_nobody_reads_does_not_hold_up_a_stop(workers: str) -> None:
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(writing, F_SETPIPE_SZ, PAGE)
        async with served(stderr=writing, RECOMMENDER_LOG_LEVEL="debug", RECOMMENDER_WORKERS=workers) as process:
            # A separate file description: else the server's writes would not block.
            filling = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
            with suppress(BlockingIOError):
                while True:
                    os.write(filling, b"\n")
            os.close(filling)
            code = await exit_code(process)
    finally:
        os.close(reading)
        os.close(writing)

    assert code == ExitCode.DRAINED


async def test_a_closed_standard_error_changes_no_exit_code() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        async with served(stderr=writing) as process:
            drained = await exit_code(process)
        async with served(stderr=writing, ready=False, RECOMMENDER_NUM_RECOMMENDATIONS="7") as process:
            refused = await asyncio.wait_for(process.wait(), PATIENCE)
    finally:
        os.close(writing)

    assert (drained, refused) == (ExitCode.DRAINED, ExitCode.NOT_STARTED)
