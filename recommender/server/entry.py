"""The first lines of a process, before its imports: standard files and signals. Imports next to nothing."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType

_MODES = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_WRONLY, "w"), ("stderr", os.O_WRONLY, "w"))
_LOOPBACK = "localhost,127.0.0.1,::1"


def open_standard_files() -> None:
    """Open `/dev/null` for a closed descriptor 0, 1 or 2.

    Otherwise the next socket gets its number, and anything printed goes into it.
    """
    for number, (name, flags, mode) in enumerate(_MODES):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number, which is this one
            os.set_inheritable(number, True)  # noqa: FBT003 (positional only)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (a descriptor)


def escape_output() -> None:
    """Have standard output escape what its encoding lacks, as standard error does; else it raises."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_output(number: int) -> None:
    """Lead a standard descriptor to `/dev/null`: what is buffered for it would make Python end with exit code 120."""
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123 (imports next to nothing)
        os.dup2(nothing.fileno(), number)


def prepare_environment() -> None:
    """Set what libraries read from the environment: no log lines besides ours, no reports, no proxies for loopback."""
    # gRPC's C core logs what it also raises, and we say it in a sentence.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # With the listener of its event engine, gRPC hands every read from one thread to another: 15 % of an empty call.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    # ONNX Runtime's official builds report to Microsoft by default, from 1.29 on also on Linux.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # A collector or a registry on this machine too; gRPC reads only the lower-case names.
    exceptions = {"no_proxy": os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")}
    if "no_grpc_proxy" in os.environ:
        exceptions["no_grpc_proxy"] = os.environ["no_grpc_proxy"]  # noqa: SIM112
    for name, said in exceptions.items():
        if said != "*" and not said.endswith(_LOOPBACK):
            os.environ[name] = f"{said},{_LOOPBACK}" if said else _LOOPBACK


def end_on_signals() -> None:
    """End this process with exit code 0 on SIGTERM or SIGINT, from now until the server handles them.

    Nothing has begun by then that would have to end. As process 1 of a container it would not even see them.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)  # an exception could be lost in a module that is being imported
