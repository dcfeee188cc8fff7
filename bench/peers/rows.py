"""Which servers are compared, and with which limits."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.peers.hosted import Unavailable
from bench.peers.wires import Json, KServe, Recommend, Wire

HERE = Path(__file__).resolve().parent
INSTALL_SECONDS = 360.0


@dataclass(frozen=True)
class Limits:
    """How a server batches, and the threads of its session."""

    batch: int
    wait_ms: float
    threads: int
    """0 leaves ONNX Runtime's own settings: as many as there are cores, spinning."""

    def __str__(self) -> str:
        return f"{self.batch} rows, {self.wait_ms:g} ms, " + (
            f"{self.threads} threads" if self.threads else "ORT's own"
        )


@dataclass(frozen=True)
class Peer:
    """A server to compare: ours or an alternative."""

    wire: Wire
    command: Callable[[str, int], list[str]]
    """From the interpreter and the port."""
    documented: Limits | None = None
    """As its documentation's example has it; None where there is nothing to set."""
    requirements: str | None = None
    """The command in a separate environment; without one, in ours."""
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Row:
    """A peer with its limits."""

    name: str
    peer: Peer
    limits: Limits | None

    @property
    def title(self) -> str:
        """Of a table."""
        return f"{self.name} ({self.limits})" if self.limits else self.name

    def environment(self, model: Path, port: int) -> dict[str, str]:
        """Environment variables of the server."""
        limits = self.limits or Limits(1, 0, cores())
        return {
            "BENCH_MODEL": str(model),
            "BENCH_PORT": str(port),
            "BENCH_BATCH": str(limits.batch),
            "BENCH_WAIT_MS": str(limits.wait_ms),
            "BENCH_THREADS": str(limits.threads),
            "RECOMMENDER_MODEL": str(model),
            "RECOMMENDER_PORT": str(port),
            **(self.peer.environment or {}),
        }


def cores() -> int:
    """As many as the session's threads are."""
    return len(os.sched_getaffinity(0))


def _module(name: str) -> Callable[[str, int], list[str]]:
    return lambda python, _: [python, "-m", f"bench.peers.{name}"]


def _ours(edge: str) -> Peer:
    return Peer(
        Recommend(), lambda python, _: [python, "-m", "recommender", "serve"], environment={"RECOMMENDER_EDGE": edge}
    )


def _mosec(python: str, port: int) -> list[str]:
    return [python, "-m", "bench.peers.mosec_server", "--port", str(port), "--log-level", "error"]


def _bentoml(python: str, port: int) -> list[str]:
    return [python, "-m", "bentoml", "serve", "bench.peers.bentoml_server:Recommender",
            "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip


PEERS = {
    "grpc": _ours("grpc"),
    "envoy": _ours("envoy"),
    "naive": Peer(Recommend(), _module("naive_server")),
    "mosec": Peer(Json("/inference"), _mosec, Limits(4, 10, 0), "mosec.txt"),
    "pytriton": Peer(
        KServe(),
        _module("pytriton_server"),
        Limits(128, 0, 0),
        "pytriton.txt",
        # Triton's stub takes the first libpython that the linker finds; it must be that of its standard library.
        {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))},
    ),
    "litserve": Peer(Json("/predict"), _module("litserve_server"), Limits(8, 100, 0), "litserve.txt"),
    "bentoml": Peer(Json("/recommend", many=True), _bentoml, Limits(32, 1000, 0), "bentoml.txt"),
    "mlserver": Peer(KServe(), _module("mlserver_server"), Limits(0, 0, 0), "mlserver.txt"),
    "ray": Peer(Recommend(), _module("ray_server"), Limits(8, 100, 0), "ray.txt"),
}
"""By the name that `--peers` takes; ours come first."""


def rows(name: str, wait_ms: float) -> list[Row]:
    """A peer as its documentation has it, and with limits equal to ours."""
    peer = PEERS[name]
    if peer.documented is None:
        return [Row(name, peer, None)]
    equal = Limits(64, wait_ms, cores())
    if name == "bentoml":  # its limit is a latency to keep, not a wait
        equal = replace(equal, wait_ms=peer.documented.wait_ms)
    return [Row(name, peer, peer.documented), Row(name, peer, equal)]


def interpreter(name: str, environments: Path) -> str:
    """The Python of a peer's own environment, which uv makes from PyPI. Raises Unavailable with what uv said."""
    requirements = PEERS[name].requirements
    if requirements is None:
        return sys.executable
    folder = environments / name
    python = folder / "bin" / "python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    commands = [] if python.exists() else [["uv", "venv", "--python", version, str(folder)]]
    commands.append(["uv", "pip", "install", "--python", str(python), "--requirement", str(HERE / requirements)])
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{' '.join(command)}: {error.stderr.strip()}") from None
        except (subprocess.TimeoutExpired, OSError) as error:
            raise Unavailable(f"{' '.join(command)}: {error}") from None
    return str(python)
