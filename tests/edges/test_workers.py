"""Several servers on one port under their supervisor, from outside: real processes, real signals."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
import structlog

from recommender.client import Client
from recommender.errors import StartError
from recommender.server.health_port import LIVENESS, READINESS, STARTUP
from recommender.server.process import ExitCode
from recommender.server.supervisor import Supervisor
from recommender.settings.settings import Settings
from tests.support.facts import FACTS
from tests.support.pages import read
from tests.support.probes import probe
from tests.support.process import Process, running
from tests.support.versions import K, answer_of, write_version

TIMEOUT = 30.0
PATIENCE = 60.0
BOTH = {"RECOMMENDER_WORKERS": "2", "RECOMMENDER_HEALTH_PORT": "0", "RECOMMENDER_METRICS_PORT": "0"}


@asynccontextmanager
async def workers(**settings: str) -> AsyncIterator[Process]:
    async with running(settings={**BOTH, **settings}, wait_for="all workers serve") as server:
        try:
            yield server
        finally:
            # If it is killed, its workers end only when they notice.
            if server.process.returncode is None:
                server.signal(signal.SIGTERM)
                await server.exit_code()


def told(server: Process, name: str, field: str) -> list[int]:
    return [event[field] for event in server.log if event["event"] == name]


def target(server: Process) -> str:
    return f"127.0.0.1:{told(server, 'port reserved', 'port')[0]}"


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await holds():
            pass


async def answers_on(server: Process, connections: int) -> list[list[int]]:
    """What as many clients get, all open at once."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(target(server))) for _ in range(connections)]
        return [list((await client.recommend([0], timeout=TIMEOUT)).item_ids) for client in clients]


async def merged_metrics(server: Process) -> str:
    address = next(event["address"] for event in server.log if event["event"] == "metrics" and "worker" not in event)
    return await asyncio.to_thread(read, address)


def up(text: str) -> dict[str, float]:
    """Which workers give their metrics."""
    found = re.findall(r'^recommender_worker_up\{worker="(\d+)"\} (\S+)$', text, re.MULTILINE)
    return {worker: float(value) for worker, value in found}


async def answered_by(server: Process) -> dict[str, float]:
    """How many calls each worker has answered, by the merged metrics."""
    text = await merged_metrics(server)
    counted = r'^rpc_server_call_duration_seconds_count\{.*Recommend".*worker="(\d)"\} (\S+)$'
    counts = re.findall(counted, text, re.MULTILINE)
    assert up(text) == {"0": 1, "1": 1}
    return {worker: float(count) for worker, count in counts}


async def test_connections_are_shared_out_and_metrics_are_added_up_by_worker() -> None:
    async with workers() as server:
        assert await answers_on(server, 20) == [FACTS[0,]] * 20
        seen = await answered_by(server)
        server.signal(signal.SIGTERM)
        code = await server.exit_code()

    assert sorted(seen) == ["0", "1"]
    assert sum(seen.values()) == 20
    assert code == ExitCode.DRAINED


async def test_a_new_version_reaches_every_worker_and_no_call_notices(tmp_path: Path) -> None:
    write_version(tmp_path / "shop" / "1", 1)
    settings = {"RECOMMENDER_MODEL": str(tmp_path / "shop"), "RECOMMENDER_NUM_RECOMMENDATIONS": str(K)}
    async with workers(**settings, RECOMMENDER_MODEL_POLL_MS="50") as server:
        seen = []

        async def reach_both() -> None:
            for _ in range(2):
                await server.until("version served")

        async with Client(target(server)) as client:
            write_version(tmp_path / "shop" / "2", 2)
            reached = asyncio.create_task(reach_both())
            while not reached.done():
                answer = await client.recommend([1, 2, 3], timeout=TIMEOUT)
                seen.append((answer.model_version, answer.item_ids))
                await asyncio.sleep(0.01)  # the proofs run at low priority
            reached.result()
        for _ in range(20):
            async with Client(target(server)) as client:
                answer = await client.recommend([1, 2, 3], timeout=TIMEOUT)
                assert (answer.model_version, answer.item_ids) == ("shop@2", answer_of(2))
        served = await answered_by(server)

    assert set(seen) <= {("shop@1", answer_of(1)), ("shop@2", answer_of(2))}
    assert seen[0] == ("shop@1", answer_of(1))
    assert sorted(served) == ["0", "1"]
    assert sum(served.values()) == len(seen) + 20


async def test_a_worker_that_is_killed_is_replaced_and_the_others_never_notice() -> None:
    async with workers() as server:
        first, second = told(server, "worker started", "pid")
        async with Client(target(server)) as client:
            await client.recommend([0], timeout=TIMEOUT)
            # Kill the one that this client is not connected to.
            (here,) = await answered_by(server)
            os.kill(second if here == "0" else first, signal.SIGKILL)
            calls = 0
            died = asyncio.create_task(server.until("worker died"))
            while not died.done():
                await client.recommend([0], timeout=TIMEOUT)
                calls += 1
            left = up(await merged_metrics(server))
            replaced = asyncio.create_task(server.until("worker serves"))
            while not replaced.done():
                await client.recommend([0], timeout=TIMEOUT)
                calls += 1

        assert calls > 0
        assert left == {here: 1, str(died.result()["worker"]): 0}
        assert str(died.result()["worker"]) != here
        assert replaced.result()["worker"] == died.result()["worker"]
        assert await answers_on(server, 10) == [FACTS[0,]] * 10


async def test_probes_tell_started_from_ready_from_alive() -> None:
    async with workers(RECOMMENDER_DRAIN_WAIT_MS="3000") as server:
        address = f"127.0.0.1:{told(server, 'probes', 'port')[0]}"
        serving = [await probe(address, name, TIMEOUT) for name in (STARTUP, READINESS, LIVENESS, "")]
        server.signal(signal.SIGTERM)

        async def unready() -> bool:
            return await probe(address, READINESS, TIMEOUT) == "NOT_SERVING"

        await eventually(unready)
        draining = [await probe(address, name, TIMEOUT) for name in (STARTUP, LIVENESS)]
        # Unready, but callers that have not noticed yet are still answered.
        answers = await answers_on(server, 3)
        code = await server.exit_code()

    assert serving == ["SERVING"] * 4
    assert draining == ["SERVING"] * 2
    assert answers == [FACTS[0,]] * 3
    assert code == ExitCode.DRAINED


async def test_recommender_health_says_in_its_exit_code_what_a_probe_asks() -> None:
    async def health(*options: str, **environment: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "recommender", "health", *options,
            env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode is not None
        return process.returncode, out.decode().strip()

    async with running(settings={"RECOMMENDER_HEALTH_PORT": "0"}) as server:
        port = str(told(server, "probes", "port")[0])
        ready = await health(RECOMMENDER_HEALTH_PORT=port)
        unknown = await health("--address", f"127.0.0.1:{port}", "--name", "nobody")
    gone = await health("--address", f"127.0.0.1:{port}", "--timeout", "1")
    unset = await health()

    assert ready == (0, "readiness: SERVING")
    assert (unknown[0], "NOT_FOUND" in unknown[1]) == (1, True)
    assert (gone[0], "UNAVAILABLE" in gone[1] or "DEADLINE_EXCEEDED" in gone[1]) == (1, True)
    assert (unset[0], "RECOMMENDER_HEALTH_PORT" in unset[1]) == (2, True)


async def test_workers_end_when_their_supervisor_is_killed() -> None:
    async with workers() as server:
        pids = told(server, "worker started", "pid")
        server.signal(signal.SIGKILL)
        await server.exit_code()

    async def gone() -> bool:
        return not any(map(alive, pids))

    await eventually(gone)


async def test_a_port_that_a_stranger_listens_on_stops_the_start() -> None:
    async with running() as stranger, running("--port", str(stranger.port), settings=BOTH, wait_for=None) as server:
        code = await server.exit_code()

    assert code == ExitCode.NOT_STARTED
    assert f"cannot listen on 127.0.0.1:{stranger.port}: Address already in use" in server.text


async def test_two_supervisors_do_not_share_a_port_in_silence() -> None:
    settings = Settings(workers=1, port=0)
    beating = (sys.executable, "-u", "-c", BEATS)
    first = Supervisor(settings, beating)
    await first.start()
    try:
        with pytest.raises(StartError, match="cannot listen on"):
            await Supervisor(settings.replace(port=first.port), beating).start()
    finally:
        await first.close()


async def test_what_stops_a_worker_s_start_stops_the_supervisor_s() -> None:
    async with running("--num-recommendations", "7", settings=BOTH, wait_for=None) as server:
        code = await server.exit_code()

    assert code == ExitCode.NOT_STARTED
    assert server.text.startswith("recommender: there is no model file")
    assert server.text.count("\n") == 1, "and nothing of the workers around it"


LINE = '{"serving": true, "metrics_port": 0}'
BEATS = f"import time\nwhile True: print('{LINE}'); time.sleep(0.05)"
DIES = f"print('{LINE}')"
DIES_FIRST = "raise SystemExit(1)"
SECOND_DIES = f"import sys\nif sys.argv[1] == '1': raise SystemExit(1)\n{BEATS}"
FALLS_SILENT = f"import time\nprint('{LINE}'); time.sleep(600)"
PRINTS_MUCH_FIRST = f"import time\nprint('{LINE}'); print('.' * 1_000_000); time.sleep(600)"


@pytest.mark.parametrize("program", [DIES, DIES_FIRST])
async def test_a_worker_that_dies_again_and_again_ends_the_supervisor(program: str) -> None:
    supervisor = Supervisor(Settings(workers=2, port=0), (sys.executable, "-u", "-c", program), pause=0.001)
    async with asyncio.timeout(PATIENCE):
        await supervisor.start()
        code = await supervisor.run()

    assert code == ExitCode.WORKERS_LOST


async def test_a_death_during_the_start_counts_however_long_the_start_took() -> None:
    supervisor = Supervisor(
        Settings(workers=1, port=0), (sys.executable, "-S", "-c", DIES_FIRST), pause=0.001, early=-1.0
    )
    async with asyncio.timeout(PATIENCE):
        await supervisor.start()
        code = await supervisor.run()

    assert code == ExitCode.WORKERS_LOST


async def test_a_worker_that_cannot_live_beside_one_that_can_is_told_by_health_and_metrics_until_the_end() -> None:
    settings = Settings(workers=2, port=0, health_port=0, metrics_port=0)
    supervisor = Supervisor(settings, (sys.executable, "-u", "-S", "-c", SECOND_DIES), pause=0.001)
    async with asyncio.timeout(PATIENCE):
        await supervisor.start()  # ends early
        told = await asyncio.to_thread(read, f"http://127.0.0.1:{supervisor.metrics_port}/metrics")
        alive = await probe(f"127.0.0.1:{supervisor.health_port}", LIVENESS, TIMEOUT)
        code = await supervisor.run()

    died = re.findall(r'^recommender_worker_deaths_total\{worker="(\d+)"\} (\S+)$', told, re.MULTILINE)
    assert dict(died) == {"0": "0.0", "1": "5.0"}
    assert up(told)["1"] == 0
    assert alive == "NOT_SERVING"
    assert code == ExitCode.WORKERS_LOST


@pytest.mark.parametrize("program", [FALLS_SILENT, PRINTS_MUCH_FIRST])
async def test_a_worker_that_falls_silent_is_killed_and_started_again(program: str) -> None:
    supervisor = Supervisor(
        Settings(workers=1, port=0), (sys.executable, "-u", "-c", program), silence=0.2, pause=0.001
    )
    with structlog.testing.capture_logs() as logged:
        await supervisor.start()
        async with asyncio.timeout(PATIENCE):
            code = await supervisor.run()

    assert code == ExitCode.WORKERS_LOST
    assert [event["event"] for event in logged].count("worker killed: it is silent") == 5


async def test_a_pause_of_the_supervisor_costs_no_worker_its_life() -> None:
    silence = 1.0
    supervisor = Supervisor(Settings(workers=2, port=0), (sys.executable, "-u", "-c", BEATS), silence=silence)
    with structlog.testing.capture_logs() as logged:
        await supervisor.start()
        running = asyncio.create_task(supervisor.run())
        # A container that is paused, a virtual machine that moves: time passes and this process does not run.
        time.sleep(1.1 * silence)  # noqa: ASYNC251 (that is the point)
        done, _ = await asyncio.wait({running}, timeout=0.2)
        await supervisor.close()
        await running

    assert not done
    assert "worker killed: it is silent" not in [event["event"] for event in logged]


async def test_a_single_server_answers_probes_beside_its_own_tls_port(tmp_path: Path) -> None:
    from tests.support.certificates import Authority  # noqa: PLC0415

    files = Authority().write_server(tmp_path)
    settings = {f"RECOMMENDER_{name.upper()}": str(path) for name, path in files.items()}
    async with running(settings={**settings, "RECOMMENDER_HEALTH_PORT": "0"}) as server:
        address = f"127.0.0.1:{told(server, 'probes', 'port')[0]}"
        assert await probe(address, READINESS, TIMEOUT) == "SERVING"
        with pytest.raises(grpc.aio.AioRpcError):
            await probe(f"127.0.0.1:{server.port}", "", 2.0)
