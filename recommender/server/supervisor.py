"""Several servers on one port: start, watch, restart and drain them, and merge their metrics.

Each is a separate process, spawned and never forked. The kernel distributes connections among those that listen
(SO_REUSEPORT), and each listens only once it can answer. The supervisor accepts no calls itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from recommender.edges.address import address_of, cannot_listen, listening_host, url_of
from recommender.engine.machine import available_cpus
from recommender.errors import StartError
from recommender.observability.prometheus import Endpoint
from recommender.observability.workers import WorkerMetrics
from recommender.server.health_port import HealthPort
from recommender.server.heartbeat import Beat
from recommender.server.process import ExitCode, any_of
from recommender.settings.settings import Settings
from recommender.threads import in_background

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "recommender", "worker")
_NO_BEAT = Beat(serving=False, metrics_port=0)
_SILENCE_SECONDS = 30.0
"""A ready worker without a beat for so long counts as hung and is killed."""
_EARLY_SECONDS = 60.0
"""A worker that served for a shorter time, or never, died early."""
_MOST_EARLY_DEATHS = 5
"""Early deaths in a row after which the supervisor gives up and leaves it to its own parent."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_AFTER_GRACE_SECONDS = 5.0
"""Time beyond their grace after which workers are killed."""


class WorkerNotStartedError(StartError):
    """A worker cannot start; it has said why on standard error."""


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker's place; its process changes with each restart."""

    number: int
    process: asyncio.subprocess.Process | None = None
    beat: Beat = _NO_BEAT
    serves_since: float | None = None
    """When this process began to serve, in monotonic seconds; None before."""
    has_served: bool = False
    """Whether this process or a previous one ever served."""
    deaths: int = 0
    early_deaths: int = 0
    code: int = 0

    def cannot_start(self) -> bool:
        """Whether it ended before it served, because of a setting, the model or the port: a restart would not help."""
        return self.code == ExitCode.NOT_STARTED and not self.has_served

    def died_early(self, early: float) -> bool:
        """Whether it died before it served, or within `early` seconds after that."""
        return self.serves_since is None or time.monotonic() - self.serves_since < early

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """Runs `workers` servers. `start` returns when all answer; `run` lasts until `stop` or until a worker is lost.

    `command` and a number start a worker. A ready worker without a beat for `silence` seconds is killed. A dead one is
    restarted after `pause` seconds, four times as long with each early death: before it served, or within `early`
    seconds after that.
    """

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str] = COMMAND,
        *,
        silence: float = _SILENCE_SECONDS,
        pause: float = _FIRST_PAUSE,
        early: float = _EARLY_SECONDS,
    ) -> None:
        self._settings = settings
        self._silence = silence
        self._pause = pause
        self._early = early
        self._command = tuple(command)
        self._workers = [_Worker(number) for number in range(settings.operations.workers or available_cpus())]
        self._probes = HealthPort(settings.network) if settings.operations.health_port is not None else None
        self._metrics: Endpoint | None = None
        self._reserved: socket.socket | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._lost = asyncio.Event()
        self._changed = asyncio.Event()
        self.port = 0
        self.health_port = 0
        self.metrics_port = 0

    def stop(self) -> None:
        """Ask `run` to drain all workers and return; a second call is a no-op."""
        self._stop.set()

    async def start(self) -> None:
        """Reserve the port and start the workers. Raises StartError, with nothing left running.

        Returns early on a signal, or if a worker died too often.
        """
        host, operations = self._settings.network.host, self._settings.operations
        try:
            self._reserved = await in_background(_reserve, host, self._settings.network.port)
            self.port = self._reserved.getsockname()[1]
            log.info("port reserved", host=host, port=self.port, workers=len(self._workers))
            if self._probes is not None and operations.health_port is not None:
                self.health_port = await self._probes.listen(host, operations.health_port)
                log.info("probes", port=self.health_port)
            if operations.metrics_port is not None:
                metrics = WorkerMetrics(self._metrics_ports, self._deaths)
                self._metrics = Endpoint(metrics, host, operations.metrics_port)
                self.metrics_port = self._metrics.port
                log.info("metrics", address=url_of(host, self.metrics_port, "/metrics"))
            # The first alone: its failure would be that of all, and the others find the model in the page cache.
            await self._start(self._workers[:1])
            await self._start(self._workers[1:])
        except BaseException:
            await self.close()
            raise
        if not self._stop.is_set() and not self._lost.is_set():
            await self._tell()
            log.info("all workers serve", workers=len(self._workers))

    async def run(self) -> ExitCode:
        """Restart workers until `stop`, or until one dies again and again; then drain them all."""
        await any_of(self._stop.wait(), self._lost.wait())
        self._stop.set()
        if self._probes is not None:
            self._probes.turn(alive=not self._lost.is_set(), ready=False)
        operations = self._settings.operations
        patience = (operations.drain_wait_ms + operations.drain_grace_ms) / 1e3 + _AFTER_GRACE_SECONDS
        log.info("draining", workers=len(self._workers), seconds=patience)
        self._send(signal.SIGTERM)
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=patience)
            if late:
                log.error("workers killed: they did not end in time", workers=len(late))
        await self.close()
        if self._lost.is_set():
            return ExitCode.WORKERS_LOST
        return ExitCode.DRAINED if all(worker.code == 0 for worker in self._workers) else ExitCode.GRACE_RAN_OUT

    async def close(self) -> bool:
        """Kill everything at once; always True, as no engine is stuck in this process."""
        self._stop.set()
        self._send(signal.SIGKILL)
        if self._keepers:
            await asyncio.wait(self._keepers)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
            self._metrics = None
        if self._probes is not None:
            await self._probes.close()
        if self._reserved is not None:
            self._reserved.close()
        return True

    async def _start(self, workers: Sequence[_Worker]) -> None:
        """Start these and wait until each serves. Raises WorkerNotStartedError if one cannot."""
        keepers = [asyncio.create_task(self._keep(worker)) for worker in workers]
        self._keepers += keepers
        while not (all(worker.beat.serving for worker in workers) or self._stop.is_set() or self._lost.is_set()):
            await any_of(self._changed.wait(), self._stop.wait(), self._lost.wait())
            self._changed.clear()
            failed = [worker for worker in workers if worker.cannot_start()]
            if failed:
                raise WorkerNotStartedError(f"worker {failed[0].number} could not start; its own line says why")

    async def _keep(self, worker: _Worker) -> None:
        """Restart one worker until `stop`, or until it has died early too often."""
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                worker.code = await self._live(worker)
            except OSError as error:  # out of processes, memory or files: perhaps not for long
                log.warning("worker not started", worker=worker.number, reason=str(error))
                worker.code = ExitCode.WORKERS_LOST
            worker.beat = _NO_BEAT
            self._changed.set()
            await self._tell()
            if self._stop.is_set():
                if worker.serves_since is None:
                    worker.code = ExitCode.DRAINED  # however it ended: there was nothing to drain
                return
            if worker.cannot_start():
                return
            worker.deaths += 1
            worker.early_deaths = worker.early_deaths + 1 if worker.died_early(self._early) else 0
            lasted = time.monotonic() - started
            log.error("worker died", worker=worker.number, code=worker.code, seconds=round(lasted, 1))
            if worker.early_deaths >= _MOST_EARLY_DEATHS:
                log.error("worker given up: it died early too often", worker=worker.number, deaths=worker.early_deaths)
                self._lost.set()
                await self._tell()
                return
            pause = min(self._pause * 4 ** max(worker.early_deaths - 1, 0), _LONGEST_PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()

    async def _live(self, worker: _Worker) -> int:
        """Run a worker once. Returns its exit code."""
        worker.serves_since = None
        # A separate session: Ctrl-C in a terminal reaches only the supervisor, which drains.
        process = worker.process = await asyncio.create_subprocess_exec(
            *self._command,
            str(worker.number),
            env=self._environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        log.info("worker started", worker=worker.number, pid=process.pid)
        if self._stop.is_set():
            worker.send(signal.SIGTERM)
        listening = asyncio.create_task(self._listen(worker, process))
        try:
            return await process.wait()
        finally:
            listening.cancel()
            await asyncio.wait({listening})

    async def _listen(self, worker: _Worker, process: asyncio.subprocess.Process) -> None:
        """Read the beats of one process; kill it if it falls silent after it was ready."""
        if process.stdout is None:
            raise RuntimeError("a worker is started with pipes")
        silent = False
        while True:
            try:
                # In two halves: after a pause of this process the first is over at once, and the other reads the beats.
                async with asyncio.timeout(None if worker.serves_since is None else self._silence / 2):
                    line = await process.stdout.readline()
            except TimeoutError:
                if not silent:
                    silent = True
                    continue
                log.warning("worker killed: it is silent", worker=worker.number, seconds=self._silence)
                worker.send(signal.SIGKILL)
                return
            except ValueError:  # a part of a line that is longer than the buffer, and so no beat
                continue
            silent = False
            if not line:
                return
            beat = Beat.of(line)
            if beat is None:
                continue
            changed, worker.beat = beat.serving != worker.beat.serving, beat
            if changed:
                self._changed.set()
                await self._tell()
            if beat.serving and worker.serves_since is None:
                worker.serves_since = time.monotonic()
                worker.has_served = True
                log.info("worker serves", worker=worker.number, pid=process.pid)

    async def _tell(self) -> None:
        """Update the probes: ready while any worker is, alive until the supervisor gives up."""
        if self._probes is not None and self._keepers:
            started = len(self._keepers) == len(self._workers)
            ready = started and any(worker.beat.serving for worker in self._workers) and not self._stop.is_set()
            self._probes.turn(alive=not self._lost.is_set(), ready=ready)

    def _send(self, number: signal.Signals) -> None:
        for worker in self._workers:
            worker.send(number)

    def _metrics_ports(self) -> Mapping[int, int]:
        return {worker.number: worker.beat.metrics_port for worker in self._workers}

    def _deaths(self) -> Mapping[int, int]:
        return {worker.number: worker.deaths for worker in self._workers}

    def _environment(self) -> dict[str, str]:
        """Environment of a worker: its share of threads and backlog, and no port but that of its metrics."""
        settings, count = self._settings, len(self._workers)
        own = settings.replace(
            workers=1,
            port=self.port,
            threads=max((settings.engine.threads or available_cpus()) // count, 1),
            max_backlog=-(-settings.engine.max_backlog // count),
            metrics_port=None if settings.operations.metrics_port is None else 0,
            health_port=None,
        )
        return {**os.environ, **own.environment()}


def _reserve(host: str, port: int) -> socket.socket:
    """Bind the port without listening: first exclusively, to find other servers, then shared. Raises StartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(listening_host(host), port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind, protocol)
        try:
            if family == socket.AF_INET6:
                reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(address)
            # From now on shared, but only with sockets that ask to share.
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            reserved.close()
            raise
    except OSError as error:
        raise cannot_listen(address_of(host, port), error.strerror or str(error)) from error
    return reserved
